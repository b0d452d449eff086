"""A file of tensors that somebody else made: what is in it by name, seen from its header, and its tensors one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from engine.config import reason
from engine.fingerprint import states
from engine.stored_file import readable, refuse_unusable
from registry.errors import Conflict, Unsupported
from registry.foreign_errors import printable

NESTED = 4  # state_dicts inside each other, at most: a pickle may hold itself
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SHOWN = 200  # letters of a tensor's name
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorFile:
    """shapes, dtypes: of each tensor; a dtype is called as in safetensors (F16). metadata: what the header says besides.

    param: the option that named the file. allow_nonfinite: weights may be NaN or infinite, because somebody said so.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]
    _read: Callable[[str], Tensor]
    _state: list[int]
    param: str = "source"
    allow_nonfinite: bool = False

    def dtype(self, name: str) -> torch.dtype:
        """Of one tensor. Raises `Unsupported` where it holds no floating point numbers that this version computes with."""
        if self.dtypes[name] not in FLOATS:
            message = f"{self.path} keeps {name} as {self.dtypes[name]}; known: {', '.join(FLOATS)}"
            raise Unsupported(f"{message} (quantised weights cannot be imported)", param=self.param)
        return FLOATS[self.dtypes[name]]

    def read(self, name: str) -> Tensor:
        """One tensor. Raises as `dtype` does."""
        self.dtype(name)
        return self._read(name)

    def weight(self, name: str) -> Tensor:
        """One tensor of a network. Raises as `read` does, and `Unsupported` for numbers that are not finite."""
        tensor = self.read(name)
        if not (self.allow_nonfinite or tensor.isfinite().all()):
            bad = f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} numbers that are NaN or infinite"
            message = f"{self.path}: {printable(name)} has {bad}, which spoil images: download it again, or --allow-nonfinite"
            raise Unsupported(message, param=self.param)
        return tensor

    def sha256(self) -> str:
        """Of the whole file. Raises `Conflict` if it is not the file any more that was opened."""
        with readable(self.path, self.param), self.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if states([self.path])[self.path] != self._state:
                raise Conflict(f"{self.path} was changed while it was read: import it again", param=self.param)
        return digest


def open_tensors(path: Path, param: str, allow_pickle: bool = False, allow_nonfinite: bool = False) -> TensorFile:
    """Open a safetensors file, or with `allow_pickle` what torch.save wrote. Reads nothing but its header.

    Raises `NotFound` and `Unsupported` naming the file and what was expected of it. `param` is the option that named it.
    """
    refuse_unusable(path, param)
    with readable(path, param):
        state = states([path])[path]
        with path.open("rb") as stream:
            head = stream.read(9)
    pickled = head.startswith((b"PK", b"\x80")) or path.suffix in PICKLES
    if pickled and head[8:9] != b"{":  # as the header of safetensors begins, whatever the file is called
        if not allow_pickle:
            message = (
                f"{path} is a pickle, which may run anything when it is read: prefer a safetensors file, or --allow-pickle"
            )
            raise Unsupported(message, param=param)
        return replace(_of_pickle(path, param, state), allow_nonfinite=allow_nonfinite)
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:  # safetensors' own kind, and OSError without a number
        raise Unsupported(f"{path} is no whole safetensors file: {reason(error)}", param=param) from error
    return TensorFile(
        path=path,
        shapes={name: tuple(part.get_shape()) for name, part in slices.items()},
        dtypes={name: part.get_dtype() for name, part in slices.items()},
        metadata=file.metadata() or {},
        _read=file.get_tensor,
        _state=state,
        param=param,
        allow_nonfinite=allow_nonfinite,
    )


def _of_pickle(path: Path, param: str, state: list[int]) -> TensorFile:
    """Nothing in the pickle runs: torch reads it with `weights_only`, and objects of a trainer's classes become empty ones.

    Of a file as torch before 1.6 wrote it, which is no zip, torch neither names the classes nor maps the tensors.
    """
    zipped = is_zipfile(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        empty: list[Any] = [(type("Empty", (), {}), name) for name in unknown]
        with torch.serialization.safe_globals(empty):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # pickle's and torch's own kinds, and those of zip files
        message = f"{path} cannot be read as a pickle of tensors without running what is in it: {reason(error)}"
        raise Unsupported(message, param=param) from error
    for _ in range(NESTED):
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise Unsupported(f"{path} must hold tensors by name, got {type(content).__name__}", param=param)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if odd := [name for name, value in tensors.items() if value.is_meta or value.layout != torch.strided]:
        raise Unsupported(f"{path} holds tensors without values, or sparse ones: {named(odd)}", param=param)
    names = {dtype: name for name, dtype in FLOATS.items()}
    return TensorFile(
        path=path,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        dtypes={name: names.get(value.dtype, str(value.dtype).removeprefix("torch.")) for name, value in tensors.items()},
        metadata={},
        _read=lambda name: tensors[name].clone(),  # two names may share their memory, which no safetensors file can hold
        _state=state,
        param=param,
    )


def named(names: Iterable[str]) -> str:
    """The first of many names, in their order, and how many there are; nothing in them moves a cursor or fills a page."""
    ordered = [shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…" for shown in map(printable, sorted(names))]
    return ", ".join(ordered[:5]) + (f", … ({len(ordered)} of them)" if len(ordered) > 5 else "")
