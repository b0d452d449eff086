"""Lines on their way to the registry's store, on disk meanwhile: what was written here survives the process.

One folder for each process, which holds its lock for as long as it lives. In it are files by stream and day. Each becomes the
object of its name, which is replaced while the file grows: so objects are few, and to send once more, wherever a process died,
changes nothing. A process that starts takes over the folders of those that died, sends what they had not sent, and says how
many lines they had accepted and never written.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import struct
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from registry.errors import Conflict
from registry.stores.base import ObjectStore

OBJECT_BYTES = 128 * 2**10  # an object that has so many grows no further: few are read, and little is sent again and again
FILE_BYTES = 4 * 2**20  # a file neither, should the store be away: one request carries it
BYTES = 512 * 2**20  # in all files of a process

_COUNT = struct.Struct("<Q")


def today() -> str:
    """The UTC day that keys are filed under. It is never before that of an event written now, so readers may begin at a day."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


@dataclass(eq=False)
class _Piece:
    """A file and its object. `size` is that of the file's whole batches, `sent` what of it the object has."""

    path: Path
    size: int = 0
    sent: int = 0
    etag: str = ""

    def append(self, data: bytes) -> None:
        """It counts when `size` is raised: until then the next one takes its place."""
        with self.path.open("ab") as file:
            file.truncate(self.size)
            file.write(data)

    def send(self, store: ObjectStore, key: str, size: int) -> None:
        """Make the object, or make it grow, to the file's first `size` bytes."""
        if size == self.sent or not self.path.exists():  # somebody swept the folder
            return
        data = self.path.read_bytes()[:size]
        etag, self.etag = self.etag, ""  # unknown again if this fails
        try:
            self.etag = store.swap(key, data, etag) if etag else store.create(key, data)
        except Conflict:  # an answer was lost, or whoever wrote the file had sent of it; never shrink what is there
            found = store.get(key)
            grows = len(data) > len(found.data) and data.startswith(found.data)
            self.etag = store.swap(key, data, found.etag) if grows else found.etag
        self.sent = size


class Outbox:
    """Files of lines, by stream: a stream is the prefix of its keys in the store.

    One thread may write while another one sends; neither waits for the other's disk or network for longer than a batch takes.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `OSError` when the folder cannot be made, and leaves nothing then."""
        self.name = uuid.uuid4().hex[:12]
        self._boxes = folder
        self._folder = folder / self.name
        self._folder.mkdir(parents=True)
        try:
            self._lock = _locked(self._folder)
            counts = self._folder / "counts"
            counts.write_bytes(bytes(2 * _COUNT.size))  # lines accepted, lines written
            with counts.open("r+b") as file:
                self._counts = mmap.mmap(file.fileno(), 0)  # in the page cache: a killed process loses nothing of it
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._accepted = self._written = self._number = 0
        self._moving = threading.Lock()  # around the two below, the sizes of pieces, and every change of the folder
        self._pieces: list[_Piece] = []  # the oldest first
        self._growing: dict[str, _Piece] = {}  # by stream: those that are written to

    def accept(self, lines: int = 1) -> None:
        """Note that so many lines will be written; from any thread that holds the recorder's lock."""
        self._accepted += lines
        _COUNT.pack_into(self._counts, 0, self._accepted)

    def write(self, batch: Mapping[str, bytes], lines: int) -> None:
        """Keep one batch, `lines` lines by stream. Raises `OSError`, and then nothing of it is kept."""
        with self._moving:
            if sum(piece.size for piece in self._pieces) >= BYTES:
                raise OSError(errno.EDQUOT, f"{BYTES >> 20} MiB wait for the registry")
            pieces = {stream: self._piece(stream) for stream in batch}
            for stream, data in batch.items():
                pieces[stream].append(data)
            for stream, data in batch.items():
                pieces[stream].size += len(data)
        self._written += lines
        _COUNT.pack_into(self._counts, _COUNT.size, self._written)

    def send(self, store: ObjectStore, prefix: str, *, last: bool = False) -> None:
        """Bring what is new to the store, the oldest first, and delete the files that grow no further: if `last`, all.

        Raises `StoreUnavailable`; the rest waits.
        """
        with self._moving:
            pieces = list(self._pieces)
        for piece in pieces:
            with self._moving:
                size = piece.size
                if last or size >= OBJECT_BYTES:
                    self._growing = {stream: each for stream, each in self._growing.items() if each is not piece}
                grows = piece in self._growing.values()
            piece.send(store, _key(prefix, self._folder, piece.path), size)
            if not grows:
                with self._moving:
                    piece.path.unlink(missing_ok=True)
                    self._pieces.remove(piece)
                    with suppress(OSError):  # another file of that day
                        piece.path.parent.rmdir()

    def inherit(self, store: ObjectStore, prefix: str) -> Iterator[int]:
        """Send what dead processes left; how many lines each of them had accepted and lost."""
        for folder in sorted(self._boxes.iterdir()):
            if folder == self._folder or not folder.is_dir() or (lock := _locked(folder)) is None:
                continue
            lost = 0
            with lock:
                for path in sorted(folder.rglob("*.jsonl")):
                    whole = path.read_bytes().rfind(b"\n") + 1  # it may have died within a line
                    _Piece(path).send(store, _key(prefix, folder, path), whole)
                    path.unlink()
                with suppress(OSError, struct.error):
                    accepted, written = struct.unpack("<QQ", (folder / "counts").read_bytes())
                    lost = accepted - written
                shutil.rmtree(folder, ignore_errors=True)
            yield lost

    def close(self) -> None:
        """Give the lock back; an empty folder goes."""
        if not self._pieces:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock:
            self._lock.close()

    def _piece(self, stream: str) -> _Piece:
        day = today()
        piece = self._growing.get(stream)
        if piece is None or piece.path.parent.name != day or piece.size >= FILE_BYTES or not piece.path.exists():
            self._number += 1
            path = self._folder / stream / day / f"{self._number:08d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            piece = self._growing[stream] = _Piece(path)
            self._pieces.append(piece)
        return piece


def _key(prefix: str, folder: Path, path: Path) -> str:
    """Made of the file's name and its folder's: whoever sends it means the same object."""
    return f"{prefix}/{path.parent.relative_to(folder).as_posix()}/{folder.name}-{path.name}"


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
