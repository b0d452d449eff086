"""A file of requests, made as background work of a running server, which needs nothing of this room."""
