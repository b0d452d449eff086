"""A folder that is made whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from registry.errors import Conflict, FlexiError, InvalidInput, NotFound
from registry.files import flush_folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder that is called `out` when the block ends without an error, and is gone otherwise.

    A kill in between leaves a hidden folder beside `out`, which the next import of that name removes. Raises `Conflict` where
    there is something already, `NotFound` where the folder around it is missing, and `InvalidInput` for a path that ends
    without a name, such as `.`.
    """
    if not out.name:
        raise InvalidInput("name a folder that is to be made", param="out")
    _refuse_taken(out)
    if not out.absolute().parent.is_dir():
        raise NotFound(f"there is no folder {out.absolute().parent}", param="out")
    start = f".{out.name.removeprefix('.')}."
    _remove_abandoned(out.absolute().parent, start)
    temporary = out.with_name(f"{start}{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    held = _held(temporary)
    try:
        yield temporary
        _flush(temporary)
        _refuse_taken(out)
        try:
            temporary.rename(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise Conflict(f"{out} is not empty", param="out") from error
        flush_folder(out.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            os.close(held)


def refuse_full(out: Path, needed: int) -> None:
    """Raises `FlexiError` where the disk of `out` has less room than so many bytes."""
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        message = (
            f"the model takes {needed / 1e9:.2f} GB, and {out.absolute().parent} has {free / 1e9:.2f} GB free: make room there"
        )
        raise FlexiError(message, param="out")


def save_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file. Raises `OSError` with the system's number, which safetensors only writes into its text."""
    file.touch()
    mode = file.stat().st_mode  # as the umask has it: safetensors would let nobody else read it
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error
        raise


def _held(folder: Path) -> int | None:
    """An open folder that nobody else can hold until it is closed, or its process ends; None where somebody holds it."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone, or somebody else's
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or a file system without locks, where nothing is removed
        os.close(opened)
        return None
    return opened


def _remove_abandoned(parent: Path, start: str) -> None:
    """Remove what killed imports left behind: temporary folders of this name that no process holds."""
    for folder in parent.glob("*.tmp"):
        if not re.fullmatch(re.escape(start) + r"[0-9a-f]{32}\.tmp", folder.name) or folder.is_symlink():
            continue
        if (held := _held(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _refuse_taken(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise Conflict(f"{out} is not a folder", param="out")
    if out.is_dir() and any(out.iterdir()):
        raise Conflict(f"{out} is not empty", param="out")


def _flush(folder: Path) -> None:
    """Make every file below survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    flush_folder(folder)
