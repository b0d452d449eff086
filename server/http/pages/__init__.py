"""Pages for people: the playground at `/`, and what it loads."""
