"""What a run folder holds, as the report asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import InvalidInput, NotFound
from registry.schedule import Schedule
from search_jobs.report.targets import CostTarget, Entry, targets

PARTS = ("config", "model", "budgets", "tiers", "samples", "teacher")  # of a report, without which nothing can be shown


@dataclass(frozen=True)
class FinishedRun:
    """A finished search: its report and the files beside it."""

    folder: Path
    report: dict[str, Any]

    @cached_property
    def targets(self) -> list[CostTarget]:
        """All that was chosen, the dearest first."""
        return targets(self.report)

    @property
    def shown(self) -> list[CostTarget]:
        """The targets that are drawn at length: the tiers, or the budgets where there are no tiers."""
        return [target for target in self.targets if target.tier] or self.targets

    @property
    def teacher_steps(self) -> int:
        """Steps of the teacher: what a schedule's computed steps are out of."""
        return int(self.report["teacher"]["schedule"]["solver"]["teacher_steps"])

    @cached_property
    def compared(self) -> dict[str, Any] | None:
        """compare.json: this search against every family of baselines and other searches, if that was measured."""
        path = self.folder / "compare.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def columns(self) -> list[str]:
        """What the columns of sample grids show: the prompts, or seeds where the model takes no text."""
        samples = self.report["samples"]
        return [text or f"seed {seed}" for text, seed in zip(samples["prompts"], samples["seeds"], strict=True)]

    def images(self, digest: str) -> NDArray[np.uint8] | None:
        """The samples of a schedule, or of `teacher`; None if the run kept none."""
        path = self.folder / "samples" / f"{digest}.npy"
        return np.load(path) if path.is_file() else None

    def schedule(self, entry: Entry) -> Schedule | None:
        """The schedule of an entry: its own document, or the one that the ledger keeps beside the measurement."""
        if "schedule" in entry:
            return Schedule.model_validate(entry["schedule"])
        return next(map(Schedule.model_validate, self._measured(entry["digest"])), None)

    def _measured(self, digest: str) -> Iterator[dict[str, Any]]:
        ledger = self.folder / "ledger.jsonl"
        for line in ledger.read_text().splitlines() if ledger.is_file() else ():
            if f"as it is/{digest}" in line:
                yield json.loads(line)["schedule"]


def read(folder: Path) -> FinishedRun:
    """The run. Raises `NotFound` when its search has not finished, `InvalidInput` when its report is damaged."""
    path = folder / "report.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no finished search (no report.json); run it again to go on", param="run")
    try:
        report = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is damaged: it is not JSON; run the search again to write it anew", param="run") from error
    missing = [name for name in PARTS if name not in report] if isinstance(report, dict) else list(PARTS)
    if missing:
        raise InvalidInput(f"{path} is no report of this version: it lacks {', '.join(missing)}", param="run")
    return FinishedRun(folder, report)
