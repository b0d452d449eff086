"""A file of a model's folder: whether it can be read, and is what its name says, seen from its first bytes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.errors import NotFound, Unsupported

HEAD = 256  # bytes that show what a file is
STAND_INS = {  # what is found where a file should be, by how it begins
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself: run git lfs pull",
    b"<!doctype html": "is a web page, not the file itself: download it again",
    b"<html": "is a web page, not the file itself: download it again",
}


@contextmanager
def readable(path: Path, param: str) -> Iterator[None]:
    """Raises `NotFound` where a file below `path` is missing or must not be read."""
    try:
        yield
    except OSError as error:
        advice = ": let this user read it" if isinstance(error, PermissionError) else ""
        message = f"cannot read {error.filename or path}: {error.strerror or error}{advice}"
        raise NotFound(message, param=param) from error


def read_object(file: Path, param: str) -> dict[str, Any]:
    """A JSON object. Raises `NotFound`, and `Unsupported` where it is something else."""
    try:
        with readable(file, param):
            data = file.read_bytes()
        refuse_stand_in(file, data[:HEAD], param)
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # the second when it is nested too deeply
        raise Unsupported(f"{file} is not JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise Unsupported(f"{file} must hold a JSON object, got {type(value).__name__}", param=param)
    return value


def refuse_unusable(file: Path, param: str) -> None:
    """Raises `NotFound` or `Unsupported`, saying what to do, for a file that is not there, or is not what its name says.

    Reads its beginning, of a safetensors file the header: quick however large the file is. Needs no torch.
    """
    with readable(file, param):
        if file.is_symlink() and not file.exists():
            raise NotFound(f"{file} is a link to {file.readlink()}, which is not there: download the model again", param=param)
        if file.is_dir():
            raise Unsupported(f"{file} is a folder, it must be a file", param=param)
        with file.open("rb") as stream:
            head = stream.read(HEAD)
        refuse_stand_in(file, head, param)
        fault = _fault(file, head)
    if fault:
        raise Unsupported(f"{file} is cut short or damaged ({fault}): download it again", param=param)


def refuse_stand_in(file: Path, head: bytes, param: str) -> None:
    """Raises `Unsupported` for a file that only stands for the one it is called after; `head` is how it begins."""
    if not head.strip():
        raise Unsupported(f"{file} is empty: download it again", param=param)
    for start, what in STAND_INS.items():
        if head.lstrip().lower().startswith(start):
            raise Unsupported(f"{file} {what}", param=param)


def _fault(file: Path, head: bytes) -> str | None:
    """What is wrong with a file of weights, in the words of its format; None if nothing is, or nothing can be seen."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="np"):
                return None
        except SafetensorError as error:
            return str(error).removeprefix("Error while deserializing header: ")
    if file.suffix == ".bin" and head.startswith(b"PK") and not zipfile.is_zipfile(file):
        return "the end of its archive is missing"
    return None
