"""The report document of a search: every measurement, the tiers as publishable schedules, and where it all came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from registry.schedule import Cost, Fidelity, Schedule, Validated
from search_jobs.baselines import Baseline
from search_jobs.choice import BudgetChoice
from search_jobs.config import WORST
from search_jobs.evaluator import EvaluationTask, Evaluator
from search_jobs.objective import Evaluation, save_samples
from search_jobs.optimiser import Point, front, hypervolume
from search_jobs.search import Search
from search_jobs.stages import RUNGS, figures_at, figures_at_size

WORST_POINT = (1.0, 100.0)  # the corner of the hypervolume: the teacher's cost, and a loss that only ruined images have


def held_scales(own: float, by_guidance: Sequence[Mapping[str, Any]]) -> list[float]:
    """The guidance scales around a search's own that a schedule holds at, the smallest first.

    That is up to the first one on each side where its held-out rFID is above that of what is set by hand at its cost: between
    two of these scales the schedule is used, too. by_guidance: the figures at each other scale, the smallest first.
    """
    held = [own]
    below = [at for at in reversed(by_guidance) if at["guidance"] < own]
    above = [at for at in by_guidance if at["guidance"] > own]
    for side in (below, above):
        held += [at["guidance"] for at in takewhile(_holds, side)]
    return sorted(held)


def _holds(at: Mapping[str, Any]) -> bool:
    measured, by_hand = at["held-out"]["rfid"], at.get("strongest_baseline", {"rfid": WORST})["rfid"]
    return bool(measured < WORST and measured <= by_hand)


@dataclass
class SearchResults:
    """A search that is over, and its choices."""

    evaluator: Evaluator
    search: Search
    choices: Sequence[BudgetChoice]
    started: datetime

    def __post_init__(self) -> None:
        search = self.search
        self.config, self.ledger, self.fitted = search.config, search.evaluations.ledger, search.ladder.fitted
        self.history = search.evolution.history

    def document(self, folder: Path) -> dict[str, Any]:
        """Everything report.json holds. Schedules under `tiers` carry cost, held-out fidelity and provenance."""
        provenance, final = self._provenance(folder), self.evaluator.objective("held-out")
        save_samples(folder / "samples" / "teacher.npy", final.teacher_outputs.images)
        budgets = {choice.ceiling: self._budget(choice, provenance) for choice in self.choices}
        return {
            "config": self.config.model_dump(mode="json"),
            "model": self.evaluator.model.ref.model_dump(mode="json"),
            "features": self.evaluator.extractor.name,
            "prompts": self.evaluator.prompts(),
            "space_size": f"{self.search.space.size():.3e}",
            "provenance": provenance,
            "evaluated": [self._point(point) for point in self.history],
            "front": [self.fitted[point.genome].digest for point in self._front()],
            "by_hand": [
                {"ceiling": ceiling, **self.entry(baseline.schedule)}
                for ceiling, baselines in self.search.rivals.items()
                for baseline in baselines
            ],
            "budgets": list(budgets.values()),
            "tiers": {name: budgets[ceiling] for name, ceiling in self.config.tiers.items()},
            "progress": self._progress(),
            "spent": self._spent(),
            "throughput": {stage: made.document() for stage, made in self.search.evaluations.throughput.items() if made.images},
            "samples": {"prompts": list(final.sample.prompts[:8]), "seeds": list(final.sample.seeds[:8])},
            "teacher": {
                "digest": final.teacher.schedule.digest,
                "macs": self.evaluator.model.macs.of_program(final.teacher, final.rows),
                "schedule": final.teacher.schedule.model_dump(mode="json", exclude_none=True),
            },
        }

    def entry(self, schedule: Schedule) -> dict[str, Any]:
        """A schedule with all that was measured of it, as it is."""
        baseline = self._by_hand().get(schedule.digest)
        stages = (*RUNGS, "finals", "held-out")
        evaluations = {stage: self.ledger.get(EvaluationTask(stage, schedule, fitting=False)) for stage in stages}
        return {
            "digest": schedule.digest,
            "steps": schedule.counts(),
            "baseline": {"family": baseline.family, "name": baseline.name} if baseline else None,
            **{stage: evaluation.measurement.document() for stage, evaluation in evaluations.items() if evaluation},
        }

    def _budget(self, choice: BudgetChoice, provenance: dict[str, Any]) -> dict[str, Any]:
        by_guidance = [{"guidance": s} | self._at(figures_at(s), choice) for s in self.config.other_scales]
        return {
            "ceiling": choice.ceiling,
            **self.entry(choice.searched),  # what was measured before it had corrections for other scales
            **self.entry(choice.schedule),
            "strongest_baseline": self.entry(choice.baseline.schedule) if choice.baseline else None,
            "against_baseline": self._against(*choice.schedules()),
            "by_guidance": by_guidance,
            "by_size": [{"size": str(s)} | self._at(figures_at_size(s), choice) for s in self.config.other_sizes],
            "schedule": self._published(choice.schedule, provenance, held_scales(self.config.guidance, by_guidance)),
        }

    def _against(self, *schedules: Schedule) -> dict[str, dict[str, float]]:
        """What was chosen against its strongest baseline, paired by image; empty where there is no other."""
        tasks = [EvaluationTask("held-out", schedule, fitting=False) for schedule in schedules]
        held = [evaluation.measurement for task in tasks if (evaluation := self.ledger.get(task))]
        return {name: estimate._asdict() for name, estimate in held[0].against(held[1]).items()} if len(held) > 1 else {}

    def _at(self, stage: str, choice: BudgetChoice) -> dict[str, Any]:
        """The figures of a choice and of its baseline at another guidance scale or size."""
        tasks = [EvaluationTask(stage, schedule, fitting=False) for schedule in choice.schedules()]
        evaluations = [evaluation for task in tasks if (evaluation := self.ledger.get(task))]
        names = ("held-out", "strongest_baseline")
        return {n: e.measurement.document() for n, e in zip(names, evaluations, strict=False)}

    def _point(self, point: Point) -> dict[str, Any]:
        return {
            "digest": self.fitted[point.genome].digest,
            "cost": point.cost,
            "loss": point.loss,
            "rung": RUNGS[point.rung],
        }

    def _front(self) -> list[Point]:
        """The front of the points on the last rung; the others were measured on too few images."""
        return front([point for point in self.history if point.rung == len(RUNGS) - 1])

    def _by_hand(self) -> dict[str, Baseline]:
        return {baseline.schedule.digest: baseline for baselines in self.search.rivals.values() for baseline in baselines}

    def _published(self, schedule: Schedule, provenance: dict[str, Any], scales: Sequence[float]) -> dict[str, Any]:
        """The schedule as it goes to the registry: what it costs at the model's own size, and does to held-out images.

        scales: of guidance, at which it holds.
        """
        evaluation = self.ledger.get(EvaluationTask("held-out", schedule, fitting=False))
        assert evaluation is not None, "what is chosen is evaluated before the results are written"
        measurement, objective, model = evaluation.measurement, self.evaluator.objective("held-out"), self.evaluator.model
        program, rows = model.compile(schedule), objective.rows
        described = schedule.model_copy(
            update={
                "validated": Validated(
                    sizes=(self.config.size or model.image_size, *self.config.other_sizes),
                    guidance=tuple(scales),
                    default_guidance=self.config.guidance if len(scales) > 1 else None,
                ),
                "cost": Cost(
                    macs=model.macs.of_program(program, rows),
                    rows=2 if rows == 2 else 1,
                    relative=round(model.macs.relative(program, objective.teacher), 6),
                ),
                "fidelity": Fidelity(
                    rfid=measurement.rfid,
                    psnr=measurement.psnr,
                    clip_score=measurement.clip_score,
                    accuracy=measurement.accuracy,
                    images=measurement.images,
                ),
                "provenance": provenance,
            }
        )
        return described.model_dump(mode="json", exclude_none=True)

    def _progress(self) -> list[dict[str, float]]:
        """After each rung of the ladder climbed so far: images generated and the hypervolume of the last rung's points."""
        images = {name: len(self.evaluator.stages[name].sample.seeds) for name in RUNGS}
        images_of_points = [sum(images[name] for name in RUNGS[: point.rung + 1]) for point in self.history]
        on_last_rung, progress = list[Point](), []
        for point, total in zip(self.history, accumulate(images_of_points), strict=True):
            if point.rung == len(RUNGS) - 1:
                on_last_rung.append(point)
                progress.append({"images": total, "hypervolume": round(hypervolume(on_last_rung, WORST_POINT), 5)})
        return progress

    def _spent(self) -> dict[str, Any]:
        """Images and MACs by stage, baselines' too, and what one point of the front took, with and without each saving.

        The teacher's images and MACs come on top.
        """
        points = max(1, len(self._front()))
        images = [len(self.evaluator.stages[name].sample.seeds) for name in RUNGS]
        stages: dict[str, dict[str, int]] = {}
        for stage, evaluation in self.ledger:
            sums = stages.setdefault(stage, {"schedules": 0, "images": 0, "macs": 0, "macs_shared": 0})
            sums["schedules"] += 1
            sums["images"] += evaluation.measurement.images
            sums["macs"] += evaluation.spent.run
            sums["macs_shared"] += evaluation.spent.shared
        climbed = list(self._climbed())
        searched = sum(evaluation.measurement.images for evaluation in climbed)
        run, shared = sum(e.spent.run for e in climbed), sum(e.spent.shared for e in climbed)
        return {
            "stages": stages,
            "teacher_images": sum(len(stage.sample.seeds) for stage in self.evaluator.stages.values()),
            "teacher_macs": sum(self.evaluator.objective(stage).teacher_macs for stage in self.evaluator.stages),
            "search_images": searched,
            "front_points": points,
            "images_per_front_point": round(searched / points, 1),
            "images_per_front_point_without_rungs": round(len(self.history) * sum(images[1:]) / points, 1),
            "macs_per_front_point": run // points,
            "macs_per_front_point_without_sharing": (run + shared) // points,
        }

    def _climbed(self) -> Iterator[Evaluation]:
        """The evaluations of the search's own points, on every rung that they reached."""
        for point in self.history:
            for stage in RUNGS[: point.rung + 1]:
                schedule = self.fitted[point.genome] if stage == "select" else self.search.space.schedule(point.genome)
                evaluation = self.ledger.get(EvaluationTask(stage, schedule, self.config.correct and stage != "select"))
                assert evaluation is not None, "a point's evaluations are in the ledger"
                yield evaluation

    def _provenance(self, folder: Path) -> dict[str, Any]:
        return {
            "job": str(folder),
            "seed": self.config.seed,
            "commit": _commit(),
            "packages": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
            "python": platform.python_version(),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "searched_images": sum(evaluation.measurement.images for evaluation in self._climbed()),
            "searched_schedules": len(self.history),
        }


def _commit() -> str | None:
    """The checkout's commit; None outside a checkout or where git is missing. FLEXI_COMMIT names it in an image."""
    if "FLEXI_COMMIT" in os.environ:
        return os.environ["FLEXI_COMMIT"]
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()
