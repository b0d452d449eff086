"""The registry in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from registry.errors import StoreUnavailable
from registry.stores.base import KEY, Stored, check_key, check_prefix, etag_of, missing, moved, taken

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class FolderStore:
    """A folder, safe among threads and processes (on a network file system if that has locks and hard links).

    New bytes are written to a hidden temporary file beside the target and flushed to the disk before they get the
    object's name: `create` by a hard link, which fails if the name exists; `swap` by a rename under the folder's lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Stored:
        """See `ObjectStore.get`."""
        with self._spoken("read", key):
            try:
                data = self._path(key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise missing(key) from None
        return Stored(data, etag_of(data))

    def changed(self, key: str, etag: str) -> Stored | None:
        """See `ObjectStore.changed`."""
        found = self.get(key)
        return None if found.etag == etag else found

    def create(self, key: str, data: bytes) -> str:
        """See `ObjectStore.create`."""
        path = self._path(key)
        with self._spoken("write", key), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise taken(key) from None
        return etag_of(data)

    def swap(self, key: str, data: bytes, etag: str) -> str:
        """See `ObjectStore.swap`."""
        path = self._path(key)
        with self._spoken("write", key):
            if not path.is_file():  # a missing object must not leave folders behind
                raise moved(key)
            with self._locked(), self._temporary(path, data) as temporary:
                if etag_of(path.read_bytes()) != etag:
                    raise moved(key)
                temporary.replace(path)
        return etag_of(data)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`. Folders stay: another process may be about to write there."""
        path = self._path(key)
        with self._spoken("delete", key), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _flush_folder(path.parent)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See `ObjectStore.list`."""
        inside = check_prefix(prefix).rpartition("/")[0]
        keys: list[str] = []
        with self._spoken("list", prefix):
            for parent, _, names in os.walk(self.root / inside, onerror=_unless_missing):
                place = f"{Path(parent).relative_to(self.root).as_posix()}/".removeprefix("./")
                paths = (place + name for name in names)
                keys += [path for path in paths if path.startswith(prefix) and path > after and KEY.fullmatch(path)]
        return iter(sorted(keys))

    def folders(self, prefix: str) -> Iterator[str]:
        """See `ObjectStore.folders`. One that a delete has left empty is told too."""
        with self._spoken("list", prefix), suppress(FileNotFoundError, NotADirectoryError):
            found = os.scandir(self.root / check_prefix(prefix))
            return iter(sorted(each.name for each in found if KEY.fullmatch(each.name) and each.is_dir()))
        return iter(())

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        """A flushed file with these bytes beside `path`; whatever the caller named is flushed too, the rest is gone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:  # unlike tempfile, obeys the umask: a team may share the folder
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes and threads that swap in this folder; the lock goes with its holder if it dies."""
        with (self.root / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _spoken(self, verb: str, key: str) -> Iterator[None]:
        """Say a problem of the disk in words that tell the operator what to do."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _FULL:
                reason = f"the disk or quota that holds it is full ({reason}): make room"
            elif error.errno in _DENIED:
                reason = f"this user lacks the permission ({reason})"
            message = f"cannot {verb} {key or 'keys'} in {self.root}: {reason}"
            raise StoreUnavailable(message, param="registry") from error


def _flush_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
