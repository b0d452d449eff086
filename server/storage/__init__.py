"""What the server itself keeps in the registry's store: image files with a URL, and removal in time."""
