"""The report document of a search: every measurement, the tiers as publishable schedules, and where it all came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from registry.schedule import Cost, Fidelity, Schedule, Validated
from search_jobs.baselines import Baseline
from search_jobs.config import JobConfig
from search_jobs.crew import Desk, Task
from search_jobs.ledger import Ledger
from search_jobs.objective import Result, save_samples
from search_jobs.optimiser import Evolution, Point, front, hypervolume
from search_jobs.space import Genome, Space
from search_jobs.stages import RUNGS

WORST_POINT = (1.0, 100.0)  # the corner of the hypervolume: the teacher's cost, and a loss that only ruined images have


@dataclass(frozen=True)
class Choice:
    """A budget's schedule, and the strongest baseline that it affords."""

    schedule: Schedule
    baseline: Baseline | None
    ceiling: float

    def schedules(self) -> list[Schedule]:
        """Both."""
        return [self.schedule] + ([self.baseline.schedule] if self.baseline else [])


@dataclass(frozen=True)
class Results:
    """A search that is over: what it was told, what it measured, what it chose."""

    config: JobConfig
    desk: Desk
    space: Space
    ledger: Ledger
    evolution: Evolution
    fitted: Mapping[Genome, Schedule]
    rivals: Mapping[float, Sequence[Baseline]]
    choices: Sequence[Choice]
    started: datetime

    def document(self, folder: Path) -> dict[str, Any]:
        """Everything report.json holds. Schedules under `tiers` carry cost, held-out fidelity and provenance."""
        provenance, final = self._provenance(folder), self.desk.objective("held-out")
        save_samples(folder / "samples" / "teacher.npy", final.reference.images)
        budgets = {choice.ceiling: self._budget(choice, provenance) for choice in self.choices}
        history = self.evolution.history
        return {
            "config": self.config.model_dump(mode="json"),
            "model": self.desk.model.ref.model_dump(mode="json"),
            "features": self.desk.extractor.name,
            "space_size": f"{self.space.size():.3e}",
            "provenance": provenance,
            "evaluated": [self._point(point) for point in history],
            "front": [self.fitted[point.genome].digest for point in self._front()],
            "by_hand": [
                {"ceiling": ceiling, **self.entry(baseline.schedule)}
                for ceiling, some in self.rivals.items()
                for baseline in some
            ],
            "budgets": list(budgets.values()),
            "tiers": {name: budgets[ceiling] for name, ceiling in self.config.tiers.items()},
            "progress": self._progress(),
            "spent": self._spent(),
            "samples": {"prompts": list(final.sample.prompts[:8]), "seeds": list(final.sample.seeds[:8])},
            "teacher": {
                "digest": final.teacher.schedule.digest,
                "macs": self.desk.model.macs.of_program(final.teacher, final.rows),
                "schedule": final.teacher.schedule.model_dump(mode="json", exclude_none=True),
            },
        }

    def entry(self, schedule: Schedule) -> dict[str, Any]:
        """A schedule with all that was measured of it as it is."""
        baseline = self._by_hand().get(schedule.digest)
        stages = {stage: self.ledger.get(Task(stage, schedule, fitting=False)) for stage in (*RUNGS, "finals", "held-out")}
        return {
            "digest": schedule.digest,
            "steps": schedule.counts(),
            "baseline": {"family": baseline.family, "name": baseline.name} if baseline else None,
            **{stage: result.measure.row() for stage, result in stages.items() if result},
        }

    def _budget(self, choice: Choice, provenance: dict[str, Any]) -> dict[str, Any]:
        return {
            "ceiling": choice.ceiling,
            **self.entry(choice.schedule),
            "strongest_baseline": self.entry(choice.baseline.schedule) if choice.baseline else None,
            "schedule": self._published(choice.schedule, provenance),
        }

    def _point(self, point: Point) -> dict[str, Any]:
        return {"digest": self.fitted[point.genome].digest, "cost": point.cost, "loss": point.loss, "rung": RUNGS[point.rung]}

    def _front(self) -> list[Point]:
        """Of the points on the last rung; the others were measured on too few images."""
        return front([point for point in self.evolution.history if point.rung == len(RUNGS) - 1])

    def _by_hand(self) -> dict[str, Baseline]:
        return {baseline.schedule.digest: baseline for some in self.rivals.values() for baseline in some}

    def _published(self, schedule: Schedule, provenance: dict[str, Any]) -> dict[str, Any]:
        """The schedule as it goes to the registry: what it costs and does to images, from the held-out measurement."""
        result = self.ledger.get(Task("held-out", schedule, fitting=False))
        assert result is not None, "what is chosen is measured before the results are written"
        measure, rows = result.measure, self.desk.objective("held-out").rows
        described = schedule.model_copy(
            update={
                "validated": Validated(sizes=(self.desk.model.image_size,), guidance=(self.config.guidance,)),
                "cost": Cost(macs=measure.macs, rows=2 if rows == 2 else 1, relative=round(measure.cost, 6)),
                "fidelity": Fidelity(
                    rfid=measure.rfid, psnr=measure.psnr, clip_score=measure.clip_score, images=measure.images
                ),
                "provenance": provenance,
            }
        )
        return described.model_dump(mode="json", exclude_none=True)

    def _progress(self) -> list[dict[str, float]]:
        """After each rung of the ladder climbed so far: images generated and the hypervolume of the last rung's points."""
        images = {name: len(self.desk.stages[name].sample.seeds) for name in RUNGS}
        each = [sum(images[name] for name in RUNGS[: point.rung + 1]) for point in self.evolution.history]
        found, line = list[Point](), []
        for point, total in zip(self.evolution.history, accumulate(each), strict=True):
            if point.rung == len(RUNGS) - 1:
                found.append(point)
                line.append({"images": total, "hypervolume": round(hypervolume(found, WORST_POINT), 5)})
        return line

    def _spent(self) -> dict[str, Any]:
        """Images and MACs by stage, baselines' too, and what one point of the front took, with and without each saving.

        The teacher's images and MACs come on top.
        """
        history, points = self.evolution.history, max(1, len(self._front()))
        images = [len(self.desk.stages[name].sample.seeds) for name in RUNGS]
        searched = sum(result.measure.images for result in self._climbed())
        stages: dict[str, dict[str, int]] = {}
        for stage, result in self.ledger:
            row = stages.setdefault(stage, {"schedules": 0, "images": 0, "macs": 0, "macs_shared": 0})
            row["schedules"] += 1
            row["images"] += result.measure.images
            row["macs"] += result.spent.run
            row["macs_shared"] += result.spent.shared
        teacher = sum(len(stage.sample.seeds) for stage in self.desk.stages.values())
        spent = [result.spent for result in self._climbed()]
        run, shared = sum(one.run for one in spent), sum(one.shared for one in spent)
        return {
            "stages": stages,
            "teacher_images": teacher,
            "teacher_macs": sum(self.desk.objective(stage).teacher_macs for stage in self.desk.stages),
            "search_images": searched,
            "front_points": points,
            "images_per_front_point": round(searched / points, 1),
            "images_per_front_point_without_rungs": round(len(history) * sum(images[1:]) / points, 1),
            "macs_per_front_point": run // points,
            "macs_per_front_point_without_sharing": (run + shared) // points,
        }

    def _climbed(self) -> Iterator[Result]:
        """What the search's own points took on every rung that they reached."""
        for point in self.evolution.history:
            for stage in RUNGS[: point.rung + 1]:
                schedule = self.fitted[point.genome] if stage == "select" else self.space.schedule(point.genome)
                result = self.ledger.get(Task(stage, schedule, self.config.correct and stage != "select"))
                assert result is not None, "a point's measurements are in the ledger"
                yield result

    def _provenance(self, folder: Path) -> dict[str, Any]:
        return {
            "job": str(folder),
            "seed": self.config.seed,
            "commit": _commit(),
            "packages": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
            "python": platform.python_version(),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "searched_images": sum(result.measure.images for result in self._climbed()),
            "searched_schedules": len(self.evolution.history),
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
