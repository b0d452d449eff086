"""Lines on their way to the registry's store, on disk meanwhile: what was written here survives the process.

One folder for each process, which holds its lock for as long as it lives. A process that starts takes over the folders of
those that died, sends what they had not sent, and says how many lines they had accepted and never written.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from registry.errors import Conflict
from registry.store import ObjectStore

log = logging.getLogger(__name__)

_TWO = struct.Struct("<QQ")  # lines accepted, lines written


class Outbox:
    """Files of lines, by stream: a stream is the prefix of its keys in the store. One thread writes and sends."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` when the folder cannot be made."""
        self.name = uuid.uuid4().hex[:12]
        self._boxes = folder
        self._folder = folder / self.name
        self._folder.mkdir(parents=True)
        self._lock = _locked(self._folder)
        counts = self._folder / "counts"
        counts.write_bytes(bytes(_TWO.size))
        with counts.open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), _TWO.size)  # in the page cache: a killed process loses nothing of it
        self._accepted = self._written = self._batch = 0

    def accept(self, lines: int = 1) -> None:
        """Note that so many lines will be written; from any thread that holds the recorder's lock."""
        self._accepted += lines
        self._tell()

    def write(self, batch: Mapping[str, bytes], lines: int) -> None:
        """Keep one batch, `lines` lines by stream. Raises `OSError`, and then nothing of it is kept."""
        self._batch += 1
        paths = [self._folder / stream / f"{self._batch:08d}.part" for stream in batch]
        try:
            for path, data in zip(paths, batch.values(), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        except OSError:
            for path in paths:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        for path in paths:
            path.replace(path.with_suffix(".jsonl"))
        self._written += lines
        self._tell()

    def waiting(self) -> int:
        """Files not sent yet."""
        return sum(1 for _ in _files(self._folder))

    def send(self, store: ObjectStore, prefix: str) -> int:
        """Send every file, the oldest first, and delete it; how many. Raises `StoreUnavailable`; the rest waits."""
        return _send(self._folder, store, prefix)

    def inherit(self, store: ObjectStore, prefix: str) -> int:
        """Send what dead processes left and return how many lines they accepted and lost."""
        lost = 0
        for folder in sorted(self._boxes.iterdir()):
            if folder == self._folder or not folder.is_dir() or (lock := _locked(folder)) is None:
                continue
            with lock:
                _send(folder, store, prefix)
                with suppress(OSError, struct.error):
                    accepted, written = _TWO.unpack((folder / "counts").read_bytes())
                    lost += accepted - written
                shutil.rmtree(folder, ignore_errors=True)
        return lost

    def close(self) -> None:
        """Give the lock back; an empty folder goes."""
        self._counts.close()
        if not self.waiting():
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock:
            self._lock.close()

    def _tell(self) -> None:
        _TWO.pack_into(self._counts, 0, self._accepted, self._written)


def _send(folder: Path, store: ObjectStore, prefix: str) -> int:
    """Keys are made of the folder's and the file's name: a file that was sent and not deleted is not sent twice."""
    sent = 0
    for path in _files(folder):
        stream = path.parent.relative_to(folder).as_posix()
        with suppress(Conflict):
            store.create(f"{prefix}/{stream}/{folder.name}-{path.name}", path.read_bytes())
        path.unlink()
        sent += 1
    return sent


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.rglob("*.jsonl"), key=lambda path: path.name))


def _locked(folder: Path) -> BinaryIO | None:
    """The folder's lock, or None while another process, or another outbox of this one, holds it."""
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    if not os.fstat(file.fileno()).st_nlink:  # taken over and removed this very moment
        file.close()
        return None
    return file
