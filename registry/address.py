"""From an address, as settings and command lines give it, to a store."""

from __future__ import annotations

from pathlib import Path

from registry.errors import InvalidInput
from registry.folder import FolderStore
from registry.store import ObjectStore


def open_store(address: str) -> ObjectStore:
    """The store at `s3://bucket/prefix` or in the folder `address`, which the first write makes."""
    refuse_secrets(address, "registry")
    if address.startswith("s3://"):
        from registry.s3 import open_s3  # boto3 takes a third of a second to import: only who uses it pays

        return open_s3(address)
    if not address or "://" in address:
        raise InvalidInput(f"registry: give a folder or s3://bucket/prefix, got {address!r}", param="registry")
    return FolderStore(Path(address))


def refuse_secrets(url: str, field: str) -> None:
    """Raise `InvalidInput` for a URL with a user, a password or a query: it would stand in every error and log line.

    The error does not repeat it.
    """
    if "://" in url and set(url) & {"@", "?", "#"}:
        message = f"{field}: no user, password or query in a URL: credentials come from the environment, a profile or a role"
        raise InvalidInput(message, param=field)
