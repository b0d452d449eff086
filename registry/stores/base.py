"""Where documents are kept: a few verbs over bytes. See `registry.stores.folder` and `registry.stores.s3`.

`create` and `swap` are atomic in every store, so that two writers never lose an update, and readers see the old bytes
or the new ones, never a mixture.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from registry.errors import Conflict, InvalidInput, NotFound

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"  # no leading dot: `..`, temporary files and locks are not keys
KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_PREFIX = re.compile(rf"({_SEGMENT}/)*({_SEGMENT})?")


class Stored(NamedTuple):
    """An object's bytes and the tag that a later `swap` must show."""

    data: bytes
    etag: str


class ObjectStore(Protocol):
    """What the catalog needs. Every verb may raise `StoreUnavailable`, and `InvalidInput` for a malformed key."""

    def get(self, key: str) -> Stored:
        """Read an object, or raise `NotFound`."""

    def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has this etag (None), or raise `NotFound`. Cheaper than `get` where little changes."""

    def create(self, key: str, data: bytes) -> str:
        """Write a new object and return its etag; raise `Conflict` if the key is taken."""

    def swap(self, key: str, data: bytes, etag: str) -> str:
        """Replace the object that still has this etag, return the new one; `Conflict` if it differs or is missing."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is missing is no error."""

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """All keys that begin with `prefix`, sorted; those past `after`, a key in the folder that the prefix names."""

    def folders(self, prefix: str) -> Iterator[str]:
        """The names between `prefix`, which is empty or ends in `/`, and the next `/`, sorted. Walks no further."""


def check_key(key: str) -> str:
    """Return a well-formed key: segments of letters, digits and `. _ -` joined by `/`, none beginning with a dot."""
    if not KEY.fullmatch(key):
        raise InvalidInput(f"{key!r} is not a valid object key", param="key")
    return key


def check_prefix(prefix: str) -> str:
    """Return a well-formed prefix: empty, or the beginning of a key."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidInput(f"{prefix!r} is not the beginning of an object key", param="prefix")
    return prefix


def missing(key: str) -> NotFound:
    """The error of a `get` without an object."""
    return NotFound("is not in the registry", param=key)


def taken(key: str) -> Conflict:
    """The error of a `create` that came second."""
    return Conflict("already exists", param=key)


def moved(key: str) -> Conflict:
    """The error of a `swap` that saw an outdated object."""
    return Conflict("was changed by somebody else (or is missing)", param=key)


def etag_of(data: bytes) -> str:
    """The tag of an object in a store that has none of its own."""
    return hashlib.sha256(data).hexdigest()
