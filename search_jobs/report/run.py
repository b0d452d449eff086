"""What a run folder holds, as the report asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import InvalidInput, NotFound
from registry.foreign_errors import one_line
from registry.schedule import Schedule
from search_jobs.ledger_lines import ledger_lines, whole
from search_jobs.report.documents import ComparisonDocument, ReportDocument, read_document
from search_jobs.report.targets import CostTarget, Entry, targets

_WITHOUT = "remove it, and the report leaves it out"
AGAIN = "run the same search again, which writes it anew"


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

    @property
    def held_out(self) -> str:
        """What of the held-out images the search has not seen: their noise, and of a model that reads prompts those, too."""
        several = self.report.get("prompts", {}).get("prompts", 2) > 1  # which old reports do not say
        return "other prompts and other noise" if several else "other noise"

    @cached_property
    def compared(self) -> dict[str, Any] | None:
        """compare.json: this search against every family of baselines and other searches, if that was measured."""
        path = self.folder / "compare.json"
        if not path.is_file():
            return None
        document = read_document(path, ComparisonDocument, remedy := "remove it, or compare again")
        if any(len(twin) != len(document["budgets"]) for twin in document.get("twins", {}).values()):
            raise InvalidInput(f"{path} is damaged (a twin has not an entry for each budget): {remedy}", param="run")
        return document

    def columns(self) -> list[str]:
        """What the columns of sample grids show: the prompts, or seeds where the model takes no text."""
        samples = self.report["samples"]
        return [text or f"seed {seed}" for text, seed in zip(samples["prompts"], samples["seeds"], strict=False)]

    def images(self, digest: str) -> NDArray[np.uint8] | None:
        """The samples of a schedule, or of `teacher`; None if the run kept none."""
        path = self.folder / "samples" / f"{digest}.npy"
        if not path.is_file():
            return None
        try:
            with path.open("rb") as stream:
                images = np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, TokenError) as error:
            raise InvalidInput(f"{path} is damaged ({one_line(error)}): {_WITHOUT}", param="run") from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            said = f"{images.dtype} of shape {images.shape} are no 8-bit images"
            raise InvalidInput(f"{path} is damaged ({said}): {_WITHOUT}", param="run")
        return images

    def schedule(self, entry: Entry) -> Schedule | None:
        """The schedule of an entry: its own document, or the one that the ledger keeps beside the measurement.

        With the corrections of the search's own guidance scale alone, as the search judged it.
        """
        if "schedule" in entry:
            return Schedule.model_validate(entry["schedule"]).for_scale(self.report["config"]["guidance"])
        return next(self._measured(entry["digest"]), None)

    def _measured(self, digest: str) -> Iterator[Schedule]:
        ledger = self.folder / "ledger.jsonl"
        for number, line in enumerate(ledger_lines(ledger), 1):
            if f"as it is/{digest}" in line:
                with whole(ledger, number, param="run"):
                    schedule = Schedule.model_validate(json.loads(line)["schedule"])
                yield schedule


def read(folder: Path) -> FinishedRun:
    """The run. Raises `NotFound` when its search has not finished, `InvalidInput` when its report is damaged."""
    path = folder / "report.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no finished search (no report.json); run it again to go on", param="run")
    return FinishedRun(folder, read_document(path, ReportDocument, AGAIN))
