"""The profiles: one locust file each, and the user they are all made of."""
