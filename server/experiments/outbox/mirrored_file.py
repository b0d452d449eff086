"""A file of lines on disk, and the object in the store that becomes its equal."""

from __future__ import annotations

from pathlib import Path

from registry.errors import Conflict
from registry.stores.base import ObjectStore


class MirroredFile:
    """A file that only grows, batch by batch, and the object that mirrors its first `size` bytes.

    `size` is that of its committed batches. What an `append` left that was never committed, because the disk was full or
    another file of the same batch failed, the next `append` overwrites. A `finished` file grows no further.
    """

    def __init__(self, path: Path, name: str) -> None:
        """`name` is that of the object, below the prefix that `mirror` is given."""
        self.path = path
        self.size = 0
        self.finished = False
        self._name = name
        self._appended = 0  # bytes, with the batch that is not committed yet
        self._mirrored = 0  # bytes that the object has
        self._etag: str | None = None  # the object's; None while it is not known whether there is one

    def append(self, data: bytes) -> None:
        """Write a batch behind the committed ones. Raises `OSError`, and may leave a part of the batch then."""
        with self.path.open("ab") as file:
            file.truncate(self.size)
            file.write(data)
        self._appended = self.size + len(data)

    def commit(self) -> None:
        """Count what was appended last as part of the file."""
        self.size = self._appended

    def mirror(self, store: ObjectStore, prefix: str, size: int) -> None:
        """Make the object equal to the file's first `size` bytes.

        Does nothing if it is, or if somebody has deleted the file. Raises `StoreUnavailable`, and `NotFound` if somebody has
        deleted the object; it is made again the next time.
        """
        if size == self._mirrored or not self.path.exists():
            return
        key, data = f"{prefix}/{self._name}", self.path.read_bytes()[:size]
        etag, self._etag = self._etag, None
        try:
            self._etag = store.swap(key, data, etag) if etag else store.create(key, data)
        except Conflict:
            self._etag = _extend(store, key, data)
        self._mirrored = size


def _extend(store: ObjectStore, key: str, data: bytes) -> str:
    """Bring an object that holds something unexpected up to `data`, and return its etag.

    It holds the same, or the beginning of it, after an answer of the store was lost, or when the file is that of a process that
    died after it had sent some of it. It may hold more than the file after a power cut: then it stays, it never shrinks.
    """
    present = store.get(key)
    if len(data) > len(present.data) and data.startswith(present.data):
        return store.swap(key, data, present.etag)
    return present.etag
