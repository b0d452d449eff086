"""HTTP: the edge around everything, the routes, and the documents that describe them."""
