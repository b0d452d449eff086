"""A diffusers pipeline folder on disk: which components it has, where their files lie, and its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.fingerprint import fingerprint
from registry.errors import NotFound, Unsupported


@contextmanager
def readable(path: Path, param: str) -> Iterator[None]:
    """Raises `NotFound` where a file below `path` is missing or must not be read."""
    try:
        yield
    except OSError as error:
        raise NotFound(f"cannot read {error.filename or path}: {error.strerror or error}", param=param) from error


def read_object(file: Path, param: str) -> dict[str, Any]:
    """A JSON object. Raises `NotFound`, and `Unsupported` where it is something else."""
    try:
        with readable(file, param):
            value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # the second when it is nested too deeply
        raise Unsupported(f"{file} is not JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise Unsupported(f"{file} must hold a JSON object, got {type(value).__name__}", param=param)
    return value


class Folder:
    """A folder with a model_index.json.

    A component's files lie in a folder of its name; some old pipelines of one network (DDPM) keep them at the root.
    """

    def __init__(self, root: str | Path) -> None:
        """Raises `NotFound` without a model_index.json, `Unsupported` when it is not a JSON object."""
        self.root = Path(root)
        with readable(self.root, "model"):
            is_pipeline = (self.root / "model_index.json").is_file()
        if not is_pipeline:
            raise NotFound(f"{self.root} is not a diffusers pipeline folder (no model_index.json)", param="model")
        self.index = read_object(self.root / "model_index.json", "model")

    def component(self, name: str) -> str | None:
        """The class of a component, None where the pipeline has none of that name."""
        entry = self.index.get(name)
        return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None else None

    def path(self, name: str) -> Path:
        """Where a component's files are."""
        return self.root / name if (self.root / name).is_dir() else self.root

    def config(self, name: str, file: str = "config.json") -> dict[str, Any]:
        """A component's configuration. Raises `NotFound` and `Unsupported`."""
        return read_object(self.path(name) / file, "model")

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files of every component that model_index.json names, and of itself."""
        components = [self.path(name) for name in self.index if self.component(name) is not None]
        files = {self.root / "model_index.json"}
        for path in components:
            files |= {f for f in (path.iterdir() if path == self.root else path.rglob("*")) if f.is_file()}
        return fingerprint(self.root, files)
