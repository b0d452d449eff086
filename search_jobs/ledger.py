"""Every evaluation of a run, appended to a file as it is made: what a killed search resumes from.

The search is deterministic for a seed and its evaluations, so resuming is the same as running again with the ledger at hand:
what is in it is not generated a second time, and the path is the one that an undisturbed run would have taken.
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
from search_jobs.evaluator import EvaluationTask
from search_jobs.objective import Evaluation, Measurement
from search_jobs.prefix_caching import MacsSpent


class Ledger:
    """Evaluations by task, one JSON line each, on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped, and nothing else.

        Raises `InvalidInput` naming a whole line that is no measurement.
        """
        self.path = path
        self._evaluations: dict[str, Evaluation] = {}
        text = path.read_text() if path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            os.truncate(path, len((whole + "\n").encode()) if whole else 0)  # writing it anew could lose all to a second kill
        for i, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                measurement = {**entry["measure"], "intervals": _pairs(entry["measure"]["intervals"])}
                schedule = Schedule.model_validate(entry["schedule"])
                self._evaluations[entry["task"]] = Evaluation(schedule, Measurement(**measurement), MacsSpent(**entry["spent"]))
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(f"{path}, line {i}: no measurement of this version", param="out") from error

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[tuple[str, Evaluation]]:
        """(stage, evaluation) of every task, in the order in which they were made."""
        return ((task.split("/")[0], evaluation) for task, evaluation in self._evaluations.items())

    def get(self, task: EvaluationTask) -> Evaluation | None:
        """The task's evaluation, if it was made."""
        return self._evaluations.get(_name(task))

    def add(self, task: EvaluationTask, evaluation: Evaluation) -> None:
        """Append one evaluation and flush it to the disk."""
        self._evaluations[_name(task)] = evaluation
        entry = {
            "task": _name(task),
            "schedule": evaluation.schedule.model_dump(mode="json", exclude_none=True),
            "measure": evaluation.measurement.document(),
            "spent": asdict(evaluation.spent),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _name(task: EvaluationTask) -> str:
    return f"{task.stage}/{'fitted' if task.fitting else 'as it is'}/{task.schedule.digest}"


def _pairs(intervals: dict[str, Any] | None) -> dict[str, tuple[float, float]] | None:
    return intervals and {name: (low, high) for name, (low, high) in intervals.items()}
