"""From an address, as settings and command lines give it, to a store."""

from __future__ import annotations

from pathlib import Path

from registry.errors import InvalidInput
from registry.stores.base import ObjectStore
from registry.stores.folder import FolderStore
from registry.stores.urls import refuse_secrets

DEFAULT_ADDRESS = ".flexi/registry"  # a folder below the present one


def open_store(address: str) -> ObjectStore:
    """The store at `s3://bucket/prefix` or in the folder `address`, which the first write makes."""
    refuse_secrets(address, "registry")
    if address.startswith("s3://"):
        from registry.stores.s3 import open_s3  # boto3 takes a third of a second to import: only who uses it pays

        return open_s3(address)
    if not address or "://" in address:
        raise InvalidInput(f"give a folder or s3://bucket/prefix, got {address!r}", param="registry")
    return FolderStore(Path(address))
