"""A process's own folder of the outbox, and the folders that dead processes left there."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from registry.files import try_lock
from server.experiments.outbox.mirrored_file import MirroredFile


class ProcessFolder:
    """A folder of the outbox whose lock this process holds: its own, or one that it has taken over from a dead process."""

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self.path = path
        self.counts = path / "counts"
        self._lock = lock

    @classmethod
    def create(cls, outbox: Path) -> Self:
        """A new folder. Raises `OSError` when it cannot be made, and leaves nothing then."""
        path = outbox / uuid.uuid4().hex[:12]
        path.mkdir(parents=True)
        try:
            lock = _try_lock(path)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        if lock is None:
            raise OSError(errno.EBUSY, "another process took the new folder for that of a dead one")
        return cls(path, lock)

    def abandoned(self) -> Iterator[Self]:
        """The folders beside this one whose processes are dead, each locked as it is reached: `close` gives it back."""
        for path in sorted(self.path.parent.iterdir()):
            if path != self.path and path.is_dir() and (lock := _try_lock(path)):
                yield type(self)(path, lock)

    def file(self, stream: str, day: str, number: int) -> MirroredFile:
        """A new file of the folder."""
        path = self.path / stream / day / f"{number:08d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._mirrored(path)

    def files(self) -> Iterator[MirroredFile]:
        """The files that are there."""
        return (self._mirrored(path) for path in sorted(self.path.rglob("*.jsonl")))

    def remove(self) -> None:
        """Delete the folder, while its lock is still held: whoever waits for that must find nothing."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Give the lock back: the next process that starts takes over what is still there."""
        self._lock.close()

    def _mirrored(self, path: Path) -> MirroredFile:
        """The object's name is made of the folder's and the file's: whoever sends the file means the same object."""
        place = path.parent.relative_to(self.path).as_posix()
        return MirroredFile(path, f"{place}/{self.path.name}-{path.name}")


def _try_lock(folder: Path) -> BinaryIO | None:
    """The folder's lock; None while another process, or another outbox of this one, holds it or has just removed the folder."""
    try:
        lock = try_lock(folder / "lock")
    except FileNotFoundError:
        return None
    if lock and not os.fstat(lock.fileno()).st_nlink:
        lock.close()
        return None
    return lock
