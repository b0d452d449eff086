"""What is wrong with a model's folder, as far as that shows without torch: for whoever wants to know at once."""

from __future__ import annotations

from pathlib import Path

from engine.families.table import family_in
from engine.folder import Folder
from engine.pipelines import refuse_foreign
from engine.stored_file import readable


def check(folder: str | Path) -> None:
    """Raises of what `engine.loading.load` raises most of what it finds in names, settings and the beginnings of files.

    Whether diffusers can build the networks, and the weights fit them, shows when they are loaded.
    """
    files = Folder(folder)
    with readable(files.root, "model"):
        refuse_foreign(files)
        family_in(files).refuse(files)
        files.check()
