"""Every measurement of a run, appended to a file as it is made: what a killed search goes on from.

The search is deterministic for a seed and its measurements, so going on is the same as running again with the ledger at
hand: what is in it is not generated a second time, and the path is the one an undisturbed run would have taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from registry.errors import InvalidInput
from registry.schedule import Schedule
from search_jobs.crew import Task
from search_jobs.objective import Measure, Result
from search_jobs.rollout import Spent


class Ledger:
    """Results by task, one JSON line each, on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped, and only that.

        Raises `InvalidInput` naming a whole line that is no measurement.
        """
        self.path = path
        self._results: dict[str, Result] = {}
        text = path.read_text() if path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            os.truncate(path, len((whole + "\n").encode()) if whole else 0)  # writing it anew could lose all to a second kill
        for i, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                measure = {**entry["measure"], "intervals": _pairs(entry["measure"]["intervals"])}
                schedule = Schedule.model_validate(entry["schedule"])
                self._results[entry["task"]] = Result(schedule, Measure(**measure), Spent(**entry["spent"]))
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(f"{path}, line {i}: no measurement of this version", param="out") from error

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[tuple[str, Result]]:
        """(stage, result) of every measurement, in the order in which they were made."""
        return ((task.split("/")[0], result) for task, result in self._results.items())

    def get(self, task: Task) -> Result | None:
        """The task's result, if it was measured."""
        return self._results.get(_name(task))

    def add(self, task: Task, result: Result) -> None:
        """Append one result and flush it to the disk."""
        self._results[_name(task)] = result
        entry = {
            "task": _name(task),
            "schedule": result.schedule.model_dump(mode="json", exclude_none=True),
            "measure": result.measure.row(),
            "spent": asdict(result.spent),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _name(task: Task) -> str:
    return f"{task.stage}/{'fitted' if task.fitting else 'as it is'}/{task.schedule.digest}"


def _pairs(intervals: dict[str, Any] | None) -> dict[str, tuple[float, float]] | None:
    return intervals and {name: (low, high) for name, (low, high) in intervals.items()}
