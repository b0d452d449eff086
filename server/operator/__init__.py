"""What operators see of a running server and its registry, and what they may do: the console's side of the server."""
