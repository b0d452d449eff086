"""The report document of a finished search: every measurement, the tiers as publishable schedules, and where it all came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from registry.schedule import Cost, Fidelity, Schedule, Validated
from search_jobs.baselines import Baseline
from search_jobs.objective import Objective
from search_jobs.optimiser import Point, front

if TYPE_CHECKING:
    from search_jobs.job import Job


@dataclass(frozen=True)
class Choice:
    """A tier's schedule, and the strongest baseline that costs no more than the tier's ceiling."""

    schedule: Schedule
    baseline: Baseline | None
    ceiling: float

    def schedules(self) -> list[Schedule]:
        """Both."""
        return [self.schedule] + ([self.baseline.schedule] if self.baseline else [])


def results(job: Job, history: Sequence[Point], choices: dict[str, Choice], final: Objective, started: datetime) -> dict[str, Any]:
    """Everything report.json holds. Schedules under `tiers` carry cost, held-out fidelity and provenance."""
    names = {b.schedule.digest: {"family": b.family, "name": b.name} for b in job.baselines}

    def entry(schedule: Schedule) -> dict[str, Any]:
        measures = {stage: job.ledger.get(f"{stage}/{schedule.digest}") for stage in ("search", "held-out")}
        return {
            "digest": schedule.digest,
            "steps": schedule.counts(),
            "baseline": names.get(schedule.digest),
            **{stage: measure.row() for stage, measure in measures.items() if measure},
        }

    evaluated = [job.space.schedule(point.genome) for point in history]
    provenance = _provenance(job, started, len(evaluated))
    return {
        "config": job.config.model_dump(mode="json"),
        "model": job.model.ref.model_dump(mode="json"),
        "space_size": f"{job.space.size():.3e}",
        "provenance": provenance,
        "evaluated": [entry(schedule) for schedule in evaluated],
        "front": [job.space.schedule(point.genome).digest for point in front(history)],
        "tiers": {
            name: {
                "ceiling": choice.ceiling,
                **entry(choice.schedule),
                "strongest_baseline": entry(choice.baseline.schedule) if choice.baseline else None,
                "schedule": _document(job, choice.schedule, final, provenance),
            }
            for name, choice in choices.items()
        },
        "samples": {"prompts": list(final.sample.prompts[:8]), "seeds": list(final.sample.seeds[:8])},
        "teacher": {
            "digest": final.teacher.schedule.digest,
            "macs": job.model.macs.of_program(final.teacher, final.rows),
            "schedule": final.teacher.schedule.model_dump(mode="json", exclude_none=True),
        },
    }


def _document(job: Job, schedule: Schedule, final: Objective, provenance: dict[str, Any]) -> dict[str, Any]:
    """The schedule as it is published: what it costs and what it does to images, from the held-out measurement."""
    measure = job.ledger.get(f"held-out/{schedule.digest}")
    assert measure is not None, "tiers are measured before the report is made"
    described = schedule.model_copy(
        update={
            "validated": Validated(sizes=(job.model.image_size,), guidance=(job.config.guidance,)),
            "cost": Cost(macs=measure.macs, rows=2 if final.rows == 2 else 1, relative=round(measure.cost, 6)),
            "fidelity": Fidelity(
                rfid=measure.rfid, psnr=measure.psnr, clip_score=measure.clip_score, images=measure.images
            ),
            "provenance": provenance,
        }
    )
    return described.model_dump(mode="json", exclude_none=True)


def _provenance(job: Job, started: datetime, evaluated: int) -> dict[str, Any]:
    return {
        "job": job.folder.name,
        "seed": job.config.seed,
        "commit": _commit(),
        "packages": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "searched_images": evaluated * job.config.images,
        "searched_schedules": evaluated,
    }


def _commit() -> str | None:
    """The checkout's commit; None outside a checkout or where git is missing. FLEXI_COMMIT names it in an image."""
    if "FLEXI_COMMIT" in os.environ:
        return os.environ["FLEXI_COMMIT"]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)  # noqa: S607  # any git will do
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
