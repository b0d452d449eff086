"""A store that fails writes as networks do: before they are made, or after, when whoever asked is told that they failed."""

from __future__ import annotations

from collections.abc import Callable

from memory_store import MemoryStore

from registry.errors import StoreUnavailable


class LossyStore(MemoryStore):
    """Writes pass until somebody sets one of the two functions of the verb and the key, which choose writes that fail.

    refuses: those that are not made. loses: those that are made, and reported as failed all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuses: Callable[[str, str], bool] = lambda verb, key: False
        self.loses: Callable[[str, str], bool] = lambda verb, key: False

    def create(self, key: str, data: bytes) -> str:
        return self._write("create", key, lambda: super(LossyStore, self).create(key, data))

    def swap(self, key: str, data: bytes, etag: str) -> str:
        return self._write("swap", key, lambda: super(LossyStore, self).swap(key, data, etag))

    def delete(self, key: str) -> None:
        self._write("delete", key, lambda: super(LossyStore, self).delete(key))

    def _write(self, verb, key, write):
        if self.refuses(verb, key):
            raise StoreUnavailable(f"{verb} {key}: no answer", param="registry")
        answer = write()
        if self.loses(verb, key):
            raise StoreUnavailable(f"{verb} {key}: the answer was lost", param="registry")
        return answer


def one_of(number: int) -> Callable[[str, str], bool]:
    """The write of this number, counted from 0."""
    left = [number]

    def chosen(verb: str, key: str) -> bool:
        left[0] -= 1
        return left[0] == -1

    return chosen
