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

from pydantic import TypeAdapter

from registry.schedule import Schedule
from search_jobs.evaluator import EvaluationTask
from search_jobs.ledger_lines import ledger_lines, whole
from search_jobs.measurement import Measurement
from search_jobs.objective import Evaluation
from search_jobs.schedule_walk import MacsSpent

_MEASUREMENT, _SPENT = TypeAdapter(Measurement), TypeAdapter(MacsSpent)


class Ledger:
    """Evaluations by task, one JSON line each, on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A last line that a kill cut short is dropped, and nothing else.

        Raises `InvalidInput` naming a whole line that is no measurement.
        """
        self.path = path
        self._evaluations: dict[str, Evaluation] = {}
        data = path.read_bytes() if path.is_file() else b""
        _, _, torn = data.rpartition(b"\n")
        if torn:
            os.truncate(path, len(data) - len(torn))  # writing it anew could lose all to a second kill
        for number, line in enumerate(ledger_lines(path), 1):
            with whole(path, number, param="out"):
                entry = json.loads(line)
                measurement, spent = _MEASUREMENT.validate_python(entry["measure"]), _SPENT.validate_python(entry["spent"])
                self._evaluations[str(entry["task"])] = Evaluation(
                    Schedule.model_validate(entry["schedule"]), measurement, spent
                )

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[tuple[str, Evaluation]]:
        """(stage, evaluation) of every task, in the order in which they were made."""
        return ((task.split("/")[0], evaluation) for task, evaluation in self._evaluations.items())

    def get(self, task: EvaluationTask) -> Evaluation | None:
        """The task's evaluation, if it was made."""
        return self._evaluations.get(task_name(task))

    def add(self, task: EvaluationTask, evaluation: Evaluation) -> None:
        """Append one evaluation and flush it to the disk."""
        self._evaluations[task_name(task)] = evaluation
        entry = {
            "task": task_name(task),
            "schedule": evaluation.schedule.model_dump(mode="json", exclude_none=True),
            "measure": asdict(evaluation.measurement),
            "spent": asdict(evaluation.spent),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def task_name(task: EvaluationTask) -> str:
    """What a ledger calls a task."""
    return f"{task.stage}/{'fitted' if task.fitting else 'as it is'}/{task.schedule.digest}"
