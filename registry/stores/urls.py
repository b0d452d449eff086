"""URLs of stores, as settings and the environment give them."""

from __future__ import annotations

from registry.errors import InvalidInput


def refuse_secrets(url: str, field: str) -> None:
    """Raise `InvalidInput` for a URL with a user, a password or a query: it would stand in every error and log line.

    The error does not repeat it.
    """
    if "://" in url and set(url) & {"@", "?", "#"}:
        message = "no user, password or query in a URL: credentials come from the environment, a profile or a role"
        raise InvalidInput(message, param=field)
