"""Which models a server is to have, as the setting FLEXI_MODELS says it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from registry.document import NAME_RULE, is_name


class ModelFolder(NamedTuple):
    """One of the models to serve, and its name, if it is given one."""

    name: str | None
    folder: Path

    @classmethod
    def listed(cls, text: str) -> tuple[ModelFolder, ...]:
        """Of `folder` or `name=folder`, with commas between, or of a file with one a line. Raises `ValueError`."""
        if Path(text).is_file():
            lines = (line.partition("#")[0].strip() for line in Path(text).read_text().splitlines())
            text = ",".join(line for line in lines if line)
        models = []
        for part in [part.strip() for part in text.split(",") if part.strip()]:
            name, named, folder = part.rpartition("=")
            if named and not is_name(name):
                raise ValueError(f"{name!r} cannot name a model: give {NAME_RULE}")
            models.append(cls(name or None, Path(folder)))
        if len({model.folder.resolve() for model in models}) < len(models):
            raise ValueError("a folder is there twice")
        return tuple(models)
