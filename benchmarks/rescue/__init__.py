"""What it is worth to let an image that would miss its deadline go on with fewer steps. Measured, and not in the server."""
