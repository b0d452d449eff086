"""A registry's objects in a dictionary: the plain twin of the real stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from typing_extensions import override

from registry.stores.base import ObjectStore, Stored, check_key, check_prefix, etag_of, missing, moved, taken


class MemoryStore(ObjectStore):
    """A dictionary with a lock: for tests, and the plain twin of the other stores."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @override
    def get(self, key: str) -> Stored:
        try:
            data = self._objects[check_key(key)]
        except KeyError:
            raise missing(key) from None
        return Stored(data, etag_of(data))

    @override
    def get_if_changed(self, key: str, etag: str) -> Stored | None:
        stored = self.get(key)
        return None if stored.etag == etag else stored

    @override
    def create(self, key: str, data: bytes) -> str:
        with self._lock:
            if check_key(key) in self._objects:
                raise taken(key)
            self._objects[key] = data
        return etag_of(data)

    @override
    def swap(self, key: str, data: bytes, etag: str) -> str:
        with self._lock:
            if check_key(key) not in self._objects or etag_of(self._objects[key]) != etag:
                raise moved(key)
            self._objects[key] = data
        return etag_of(data)

    @override
    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    @override
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        check_prefix(prefix)
        with self._lock:
            keys = [key for key in self._objects if key.startswith(prefix) and key > after]
        return iter(sorted(keys))

    @override
    def folders(self, prefix: str) -> Iterator[str]:
        inner = (key.removeprefix(prefix) for key in self.list(prefix))
        return iter(sorted({rest.partition("/")[0] for rest in inner if "/" in rest}))
