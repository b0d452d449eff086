"""A store in which a writer is killed just before or after its n-th write, and a clock that a test turns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from memory_store import MemoryStore


class Killed(BaseException):
    """No handler of ours catches it, as none sees a SIGKILL."""


class DyingStore(MemoryStore):
    """Lets `writes` more writes through; the next one kills the writer before it does anything. None: all pass."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: int | None = None

    def create(self, key: str, data: bytes) -> str:
        self._spend()
        return super().create(key, data)

    def swap(self, key: str, data: bytes, etag: str) -> str:
        self._spend()
        return super().swap(key, data, etag)

    def delete(self, key: str) -> None:
        self._spend()
        super().delete(key)

    def overwrite(self, key: str, data: bytes) -> None:
        """What a broken disk or a careless person does."""
        self._objects[key] = data

    def lose(self, key: str) -> None:
        """What a disk that forgets does."""
        del self._objects[key]

    def _spend(self) -> None:
        if self.writes is not None:
            if self.writes == 0:
                raise Killed
            self.writes -= 1


class Clock:
    """A second passes whenever somebody looks; a test may let more pass."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 3, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    def pass_days(self, days: float) -> None:
        self.time += timedelta(days=days)
