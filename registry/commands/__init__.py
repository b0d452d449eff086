"""What the command lines share, and the commands that keep a registry in order."""
