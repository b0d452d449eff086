"""Load tests: locust drives a real service, and its result is held to limits."""
