"""Files that are written whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

PUBLIC = 0o666  # less what the umask takes
SECRET = 0o600


def replace_file(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Let `path` hold these bytes; see `replacing`."""
    with replacing(path, mode) as stream:
        stream.write(data)


def create_file(path: Path, data: bytes) -> None:
    """Make the file `path` with these bytes, whole or not at all. Raises `FileExistsError` if somebody else was first."""
    with _writing(PUBLIC, path, os.link) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path, mode: int = PUBLIC) -> Iterator[BinaryIO]:
    """A stream whose bytes take the place of the file `path` when the block ends without an error.

    Readers, and whoever comes after a kill or a power cut, find the old file or the new one, never a part of it. Writers may
    race: the last one wins. A kill in between leaves a hidden temporary file beside `path`.
    """
    with _writing(mode, path, Path.replace) as stream:
        yield stream


@contextmanager
def _writing(mode: int, path: Path, name: Callable[[Path, Path], object]) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, flushed to the disk before `name` gives it that name, and the name flushed too."""
    temporary = path.with_name(f".{path.name.removeprefix('.')}.{uuid.uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        name(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make new names in the folder, and removals, survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of `path`, hold it in the block. A folder is locked itself; a file is made where there is none.

    It keeps out other processes and other threads that ask for it, and goes with its holder if that dies (flock(2)). On a
    network file system use a file: some lock only what is open for writing.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, PUBLIC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> BinaryIO | None:
    """The file `path`, made where there is none, open to read and append; None while somebody else holds its lock.

    The lock is held until the returned file is closed or the process ends, however it ends.
    """
    with ExitStack() as closing:
        file = closing.enter_context(path.open("a+b"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        closing.pop_all()
        return file
