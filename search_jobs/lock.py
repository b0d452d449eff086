"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from registry.errors import Conflict, InvalidInput

FILE = "lock"


def lock(folder: Path) -> TextIO:
    """Make the run folder where there is none, and keep other processes out of it for as long as the returned file is open.

    The system lets go when the process ends, however it ends (flock(2)); the file stays, with the number of its last process.
    Raises `InvalidInput` where no folder can be, `Conflict` naming the process that is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("a+")
    except FileExistsError as error:
        raise InvalidInput(f"{folder} is a file, not a folder", param="out") from error
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be a run folder: {error.strerror}", param="out") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise Conflict(f"process {file.read()} is at work in {folder}", param="out") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
