"""A folder that is made whole or not at all."""

from __future__ import annotations

import errno
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

    A kill in between leaves a hidden folder beside `out`. Raises `Conflict` where there is something already, `NotFound` where
    the folder around it is missing, and `InvalidInput` for a path that ends without a name, such as `.`.
    """
    if not out.name:
        raise InvalidInput("name a folder that is to be made", param="out")
    _refuse_taken(out)
    if not out.absolute().parent.is_dir():
        raise NotFound(f"there is no folder {out.absolute().parent}", param="out")
    temporary = out.with_name(f".{out.name.removeprefix('.')}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
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
