"""The registry in a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import override

from registry.errors import StoreUnavailable
from registry.files import create_file, flush_folder, locked, replace_file
from registry.stores.base import KEY, ObjectStore, Stored, check_key, check_prefix, etag_of, missing, moved, taken

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class FolderStore(ObjectStore):
    """A folder, safe among threads and processes (on a network file system if that has locks and hard links).

    New bytes are written to a hidden temporary file beside the target and flushed to the disk before they get the
    object's name: `create` by a hard link, which fails if the name exists; `swap` by a rename under the folder's lock, which
    `delete` takes, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @override
    def get(self, key: str) -> Stored:
        with self._translated("read", key):
            try:
                data = self._path(key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise missing(key) from None
        return Stored(data, etag_of(data))

    @override
    def get_if_changed(self, key: str, etag: str) -> Stored | None:
        stored = self.get(key)
        return None if stored.etag == etag else stored

    @override
    def create(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._translated("write", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                create_file(path, data)
            except FileExistsError:
                raise taken(key) from None
        return etag_of(data)

    @override
    def swap(self, key: str, data: bytes, etag: str) -> str:
        path = self._path(key)
        with self._translated("write", key):
            try:
                with locked(self.root / ".lock"):
                    if etag_of(path.read_bytes()) != etag:
                        raise moved(key)
                    replace_file(path, data)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise moved(key) from None
        return etag_of(data)

    @override
    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._translated("delete", key), suppress(FileNotFoundError, NotADirectoryError):
            # its folder stays, even an empty one: another process may be about to write there
            with locked(self.root / ".lock"):  # or a swap that saw it brings it back
                path.unlink()
            flush_folder(path.parent)

    @override
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        inside = check_prefix(prefix).rpartition("/")[0]
        keys: list[str] = []
        with self._translated("list", prefix):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")  # and not one without objects
            for parent, _, names in os.walk(self.root / inside, onerror=_unless_missing):
                place = f"{Path(parent).relative_to(self.root).as_posix()}/".removeprefix("./")
                paths = (place + name for name in names)
                keys += [path for path in paths if path.startswith(prefix) and path > after and KEY.fullmatch(path)]
        return iter(sorted(keys))

    @override
    def folders(self, prefix: str) -> Iterator[str]:
        with self._translated("list", prefix), suppress(FileNotFoundError, NotADirectoryError):
            entries = os.scandir(self.root / check_prefix(prefix))  # one that a delete has left empty is among them
            return iter(sorted(entry.name for entry in entries if KEY.fullmatch(entry.name) and entry.is_dir()))
        return iter(())

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Turn an `OSError` into `StoreUnavailable`, in words that tell the operator what to do."""
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


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
