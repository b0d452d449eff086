"""A store that counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from typing_extensions import override

from registry.stores.base import ObjectStore, Stored

PAGE = 1_000  # keys that one LIST of S3 answers with


class CountedStore(ObjectStore):
    """Passes everything on to `store`. requests: how many of S3, by method; sent: bytes of objects written."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.requests = Counter[str]()
        self.sent = 0

    def reset(self) -> None:
        """Count from zero."""
        self.requests.clear()
        self.sent = 0

    @override
    def get(self, key: str) -> Stored:
        self.requests["GET"] += 1
        return self._store.get(key)

    @override
    def get_if_changed(self, key: str, etag: str) -> Stored | None:
        self.requests["GET"] += 1
        return self._store.get_if_changed(key, etag)

    @override
    def create(self, key: str, data: bytes) -> str:
        self._put(data)
        return self._store.create(key, data)

    @override
    def swap(self, key: str, data: bytes, etag: str) -> str:
        self._put(data)
        return self._store.swap(key, data, etag)

    @override
    def delete(self, key: str) -> None:
        self.requests["DELETE"] += 1
        self._store.delete(key)

    @override
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        yield from self._pages(self._store.list(prefix, after))

    @override
    def folders(self, prefix: str) -> Iterator[str]:
        yield from self._pages(self._store.folders(prefix))

    def _put(self, data: bytes) -> None:
        self.requests["PUT"] += 1
        self.sent += len(data)

    def _pages(self, names: Iterator[str]) -> Iterator[str]:
        self.requests["LIST"] += 1
        for number, name in enumerate(names):
            if number and number % PAGE == 0:
                self.requests["LIST"] += 1
            yield name
