"""How many events a process accepted and how many of them it wrote: counts that survive its death."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_COUNT = struct.Struct("<Q")  # the file holds two: accepted, written


class EventCounts:
    """The counts of a living process, in a file that it maps into its memory.

    A count is in the page cache as soon as it is raised: `kill -9` loses nothing of it, and raising it costs no system call.
    """

    def __init__(self, path: Path) -> None:
        """Begin at zero. Raises `OSError` when the file cannot be made."""
        path.write_bytes(bytes(2 * _COUNT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._accepted = self._written = 0

    def accept(self, events: int) -> None:
        """Note that so many more will be written. One thread at a time."""
        self._accepted += events
        _COUNT.pack_into(self._map, 0, self._accepted)

    def wrote(self, events: int) -> None:
        """Note that so many more are written. One thread at a time, which need not be that of `accept`."""
        self._written += events
        _COUNT.pack_into(self._map, _COUNT.size, self._written)


def count_lost(path: Path) -> int:
    """How many events the process that left this file had accepted and never wrote; 0 if it left none that can be read."""
    try:
        accepted, written = struct.unpack("<QQ", path.read_bytes())
    except (OSError, struct.error):
        return 0
    return int(accepted - written)
