"""The report document of a search: every measurement, the tiers as publishable schedules, and where it all came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from engine.models import Model
from registry.schedule import Cost, Fidelity, Schedule, Validated
from search_jobs.baselines import Baseline
from search_jobs.config import JobConfig
from search_jobs.ledger import Ledger
from search_jobs.objective import Objective
from search_jobs.optimiser import Point, front
from search_jobs.space import Space


@dataclass(frozen=True)
class Choice:
    """A tier's schedule, and the strongest baseline that costs no more than the tier's ceiling."""

    schedule: Schedule
    baseline: Baseline | None
    ceiling: float

    def schedules(self) -> list[Schedule]:
        """Both."""
        return [self.schedule] + ([self.baseline.schedule] if self.baseline else [])


@dataclass(frozen=True)
class Results:
    """A search that is over: what it was told, what it measured, what it chose."""

    job: str
    config: JobConfig
    model: Model
    space: Space
    baselines: Sequence[Baseline]
    ledger: Ledger
    history: Sequence[Point]
    choices: dict[str, Choice]
    final: Objective
    started: datetime

    def document(self) -> dict[str, Any]:
        """Everything report.json holds. Schedules under `tiers` carry cost, held-out fidelity and provenance."""
        provenance, teacher = self._provenance(), self.final.teacher
        return {
            "config": self.config.model_dump(mode="json"),
            "model": self.model.ref.model_dump(mode="json"),
            "space_size": f"{self.space.size():.3e}",
            "provenance": provenance,
            "evaluated": [self._entry(self.space.schedule(point.genome)) for point in self.history],
            "front": [self.space.schedule(point.genome).digest for point in front(self.history)],
            "tiers": {
                name: {
                    "ceiling": choice.ceiling,
                    **self._entry(choice.schedule),
                    "strongest_baseline": self._entry(choice.baseline.schedule) if choice.baseline else None,
                    "schedule": self._published(choice.schedule, provenance),
                }
                for name, choice in self.choices.items()
            },
            "samples": {"prompts": list(self.final.sample.prompts[:8]), "seeds": list(self.final.sample.seeds[:8])},
            "teacher": {
                "digest": teacher.schedule.digest,
                "macs": self.model.macs.of_program(teacher, self.final.rows),
                "schedule": teacher.schedule.model_dump(mode="json", exclude_none=True),
            },
        }

    def _entry(self, schedule: Schedule) -> dict[str, Any]:
        by_hand = [b for b in self.baselines if b.schedule.digest == schedule.digest]
        measures = {stage: self.ledger.get(f"{stage}/{schedule.digest}") for stage in ("search", "finals", "held-out")}
        return {
            "digest": schedule.digest,
            "steps": schedule.counts(),
            "baseline": {"family": by_hand[0].family, "name": by_hand[0].name} if by_hand else None,
            **{stage: measure.row() for stage, measure in measures.items() if measure},
        }

    def _published(self, schedule: Schedule, provenance: dict[str, Any]) -> dict[str, Any]:
        """The schedule as it goes to the registry: what it costs and does to images, from the held-out measurement."""
        measure = self.ledger.get(f"held-out/{schedule.digest}")
        assert measure is not None, "tiers are measured before the results are written"
        described = schedule.model_copy(
            update={
                "validated": Validated(sizes=(self.model.image_size,), guidance=(self.config.guidance,)),
                "cost": Cost(macs=measure.macs, rows=2 if self.final.rows == 2 else 1, relative=round(measure.cost, 6)),
                "fidelity": Fidelity(
                    rfid=measure.rfid, psnr=measure.psnr, clip_score=measure.clip_score, images=measure.images
                ),
                "provenance": provenance,
            }
        )
        return described.model_dump(mode="json", exclude_none=True)

    def _provenance(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "seed": self.config.seed,
            "commit": _commit(),
            "packages": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
            "python": platform.python_version(),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "searched_images": len(self.history) * self.config.images,
            "searched_schedules": len(self.history),
        }


def _commit() -> str | None:
    """The checkout's commit; None outside a checkout or where git is missing. FLEXI_COMMIT names it in an image."""
    if "FLEXI_COMMIT" in os.environ:
        return os.environ["FLEXI_COMMIT"]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
