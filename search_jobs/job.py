"""The search job: ask, evaluate, tell, until the generations are done; then its budgets on prompts and noise it never saw."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from registry.document import first_fault
from registry.errors import InvalidInput
from registry.files import replace_file
from registry.schedule import Schedule
from search_jobs.baselines import Baseline, Hand
from search_jobs.cluster import Cluster
from search_jobs.config import JobConfig
from search_jobs.crew import Alone, Crew, Desk, Task
from search_jobs.ledger import Ledger
from search_jobs.lock import lock
from search_jobs.objective import Objective, Result
from search_jobs.optimiser import Child, Evolution, Point, survivors
from search_jobs.results import Choice, Results
from search_jobs.space import Genome, Space
from search_jobs.stages import RUNGS

CONFIG = "config.json"
K = TypeVar("K", bound=Hashable)
RIVALS = 3  # baselines of each budget that are measured on more images than the first few


class Progress(Protocol):
    """Who wants to see how far the job is. Work is counted in images."""

    def stage(self, name: str, images: int) -> None:
        """A stage of about `images` images begins."""

    def advance(self, images: int) -> None:
        """So many more images of the stage are done."""


class Job:
    """One run folder: config.json, ledger.jsonl, the teacher's outputs, and at the end report.json."""

    def __init__(
        self, config: JobConfig, folder: Path, progress: Progress, workers: int = 1, scheduler: str | None = None
    ) -> None:
        """Keep other processes out of the folder while this object lives, and load the model.

        With several `workers`, or the address of a Dask `scheduler`, others measure. Raises `InvalidInput` when the folder
        belongs to a job with another configuration, `Conflict` when another process is at work in it.
        """
        self.config, self.folder, self.progress = config, folder, progress
        self.workers, self.scheduler = workers, scheduler
        self._lock = lock(folder)
        self._refuse_foreign_folder()
        self.desk = Desk.open(config, folder)
        model, high = self.desk.model, min(config.max_segments, config.teacher_steps)
        self.space = Space(
            model=model.ref,
            levels=model.levels,
            branches=model.network.branches,
            teacher_steps=config.teacher_steps,
            segments=(min(2, high), high),
            max_partial=config.max_partial,
            retime=config.retime,
            offsets=config.offsets,
        )
        write_json(folder / CONFIG, config.model_dump(mode="json"))  # now that every input was found good
        self.hand = Hand(model.ref, model.solver, model.network.branches, lambda schedule: self.cost(schedule))
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.fitted: dict[Genome, Schedule] = {}  # with the corrections of the highest rung that fits them

    def run(self) -> dict[str, Any]:
        """Search, decide, measure, write report.json and return it. Run again on the same folder, it goes on where it was."""
        started = datetime.now(UTC)
        with self.crew() as crew:  # before the teacher's images: what is wrong with it is said at once
            for stage in self.desk.stages:
                self.objective(stage)
            evolution = self._search(crew)
            rivals = self.rivals(
                crew, {aim: list(self.hand.strongest(aim, self.config.teacher_steps)) for aim in self.config.aims}
            )
            choices = self._decide(crew, evolution, rivals)
            chosen = {s.digest: s for choice in choices for s in choice.schedules()}
            self.progress.stage("held-out", len(chosen) * self.config.heldout)
            self.measure(crew, "held-out", chosen.values(), fitting=False)
        results = Results(self.config, self.desk, self.space, self.ledger, evolution, self.fitted, rivals, choices, started)
        report = results.document(self.folder)
        write_json(self.folder / "report.json", report)
        return report

    def crew(self) -> Crew:
        """Who measures."""
        if self.workers > 1 or self.scheduler is not None:
            return Cluster(self.config, self.folder, self.workers, self.scheduler)
        return Alone(self.desk)

    def _search(self, crew: Crew) -> Evolution:
        """Generations of children that climb the rungs."""
        config = self.config
        by_hand = [baseline.schedule for aim in config.aims for baseline in self.hand.strongest(aim, config.teacher_steps)]
        evolution = Evolution(
            self.space,
            initial=[genome for schedule in by_hand if (genome := self.space.adopt(schedule)) is not None],
            cost_of=lambda genome: self.cost(self.space.schedule(genome)),
            budgets=config.aims,
            population=config.population,
            seed=config.seed,
        )
        try:
            while evolution.generation <= config.generations:
                children = evolution.ask()
                name = f"generation {evolution.generation}" if evolution.generation else "from baselines"
                self.progress.stage(name, self._ladder(len(children)))
                evolution.tell(self._climb(crew, children))
        except KeyboardInterrupt:
            if not evolution.history:
                raise
            self.progress.stage("stopped: deciding by what was found (Ctrl-C again leaves at once)", 0)
        return evolution

    def _ladder(self, children: int) -> int:
        """About how many images so many children take: how many climb on depends on the budgets that they share."""
        config, climbing, images = self.config, children, 0
        for each in (config.screen, config.images, config.select):
            images += climbing * each
            climbing = min(climbing, max(len(config.aims), round(config.share * climbing)))
        return images

    def _climb(self, crew: Crew, children: Sequence[Child]) -> list[Point]:
        """Every child with its loss on the highest rung it reached; on the last rung, with the images of the rung before it."""
        points: dict[Genome, Point] = {}
        field, fitted = list(children), dict[Genome, Schedule]()
        for rung, stage in enumerate(RUNGS):
            fitting = self.config.correct and stage != "select"
            entered = {c.genome: fitted[c.genome] if stage == "select" else self.space.schedule(c.genome) for c in field}
            results = self.measure(crew, stage, entered.values(), fitting)
            for (genome, _), result in zip(entered.items(), results, strict=True):
                fitted[genome], measure = result.schedule, result.measure
                loss = measure.loss
                if stage == "select":
                    before, weights = points[genome].loss, (self.config.images, self.config.select)
                    loss = (weights[0] * before + weights[1] * loss) / sum(weights)
                points[genome] = Point(genome, measure.cost, loss, rung)
            field = survivors(field, lambda genome: points[genome].loss, self.config.share)
        self.fitted |= fitted
        return list(points.values())

    def rivals(self, crew: Crew, groups: Mapping[K, Sequence[Baseline]]) -> dict[K, list[Baseline]]:
        """The strongest baselines of each group, as a user would set them: no corrections. The best first.

        All are measured on the images of the first rung, the best of each group also on those of the second.
        """
        shortened = dict(groups)
        for stage in ("screen", "search"):
            losses = self._losses(crew, stage, [one for some in shortened.values() for one in some])
            for name, some in shortened.items():
                shortened[name] = sorted(some, key=lambda one: losses[one.schedule.digest])[:RIVALS]
        return {name: list(some) for name, some in shortened.items()}

    def _losses(self, crew: Crew, stage: str, baselines: Sequence[Baseline]) -> dict[str, float]:
        schedules = {one.schedule.digest: one.schedule for one in baselines}
        self.progress.stage(f"by hand, {stage}", len(schedules) * len(self.desk.stages[stage].sample.seeds))
        results = self.measure(crew, stage, schedules.values(), fitting=False)
        return {digest: result.measure.loss for digest, result in zip(schedules, results, strict=True)}

    def _decide(self, crew: Crew, evolution: Evolution, rivals: dict[float, list[Baseline]]) -> list[Choice]:
        """Each budget's finalists, on noise they were not picked by: luck in the search does not win twice.

        Finalists are the best points of the search that the budget affords, and the two strongest baselines there, so that no
        tier is worse than what can be set by hand, as far as these images tell.
        """
        entered = {}
        for aim in self.config.aims:
            points = evolution.best(aim)[: self.config.finalists]
            by_hand = [baseline.schedule for baseline in rivals[aim][:2]]
            entered[aim] = [*(self.fitted[point.genome] for point in points), *by_hand]
            if not entered[aim]:
                raise InvalidInput(f"nothing costs at most {aim:g} of the teacher", param="tiers")
        everyone = {s.digest: s for some in entered.values() for s in some}
        self.progress.stage("finals", len(everyone) * self.config.finals)
        measured = zip(everyone, self.measure(crew, "finals", everyone.values(), fitting=False), strict=True)
        losses = {digest: result.measure.loss for digest, result in measured}
        choices = []
        for aim, some in entered.items():
            ranked = sorted(some, key=lambda schedule: losses[schedule.digest])
            by_digest = {baseline.schedule.digest: baseline for baseline in rivals[aim]}
            strongest = next((by_digest[s.digest] for s in ranked if s.digest in by_digest), None)
            choices.append(Choice(ranked[0], strongest, aim))
        return choices

    def measure(self, crew: Crew, stage: str, schedules: Iterable[Schedule], fitting: bool) -> list[Result]:
        """Of each schedule: from the ledger if it is there, else measured and written to the ledger as soon as it is known."""
        tasks = [Task(stage, schedule, fitting) for schedule in schedules]
        missing = list({task.schedule.digest: task for task in tasks if self.ledger.get(task) is None}.values())
        for i, result in crew.measure(missing, self.progress.advance):
            self.ledger.add(missing[i], result)
        return [known for task in tasks if (known := self.ledger.get(task)) is not None]

    def objective(self, stage: str) -> Objective:
        """The stage's objective; its teacher's outputs are computed, unless they are in the folder."""
        self.progress.stage(f"teacher, {stage}", len(self.desk.stages[stage].sample.seeds))
        return self.desk.objective(stage, self.progress.advance)

    def cost(self, schedule: Schedule) -> float:
        """Relative to the teacher's."""
        return self.desk.objective("screen").relative(self.desk.model.compile(schedule))

    def _refuse_foreign_folder(self) -> None:
        path = self.folder / CONFIG
        if not path.is_file():
            return
        try:
            stored = JobConfig.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InvalidInput(f"{path} is no configuration of this version: {first_fault(error)}", param="out") from error
        other = [name for name in JobConfig.model_fields if getattr(stored, name) != getattr(self.config, name)]
        if other:
            raise InvalidInput(
                f"{self.folder} holds a job with another configuration ({', '.join(other)}); choose another folder",
                param="out",
            )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json.dumps(value, indent=1).encode() + b"\n")
