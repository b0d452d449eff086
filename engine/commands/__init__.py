"""What `python -m engine` does, where it takes more than a few lines."""
