"""The project used as a user would use it."""
