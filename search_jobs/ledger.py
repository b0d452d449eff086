"""Every measurement of a run, appended to a file as it is made: what a killed search goes on from.

The search is deterministic for a seed and its measurements, so going on is the same as running again with the ledger at
hand: what is in it is not generated a second time, and the path is the one an undisturbed run would have taken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from search_jobs.objective import Measure


class Ledger:
    """Measures by key (sample name and schedule digest), one JSON line each, on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped, and only that."""
        self.path = path
        self._measures: dict[str, Measure] = {}
        text = path.read_text() if path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            path.write_text(whole + "\n" if whole else "")
        for line in filter(None, whole.split("\n")):
            entry = json.loads(line)
            key = entry.pop("key")
            self._measures[key] = Measure(**entry)

    def __len__(self) -> int:
        return len(self._measures)

    def get(self, key: str) -> Measure | None:
        """The measure under this key, if it was made."""
        return self._measures.get(key)

    def add(self, key: str, measure: Measure) -> None:
        """Append one measure and flush it to the disk."""
        self._measures[key] = measure
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **measure.row()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
