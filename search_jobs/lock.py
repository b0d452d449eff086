"""One process at a time works in a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from registry.errors import Conflict, InvalidInput
from registry.files import try_lock

FILE = "lock"


def lock(folder: Path) -> BinaryIO:
    """Make the run folder where there is none, and keep other processes out of it for as long as the returned file is open.

    The system lets go when the process ends, however it ends; the file stays, with the number of its last process.
    Raises `InvalidInput` where no folder can be, `Conflict` naming the process that is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = try_lock(folder / FILE)
    except FileExistsError as error:
        raise InvalidInput(f"{folder} is a file, not a folder", param="out") from error
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be a run folder: {error.strerror}", param="out") from error
    if file is None:
        raise Conflict(f"process {(folder / FILE).read_text()} is at work in {folder}", param="out")
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file
