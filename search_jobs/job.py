"""The search job: ask, evaluate, tell, until the generations are done; then decide, and measure on held-out images."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from pydantic import ValidationError

from registry.document import first_fault
from registry.errors import InvalidInput
from registry.files import replace_file
from registry.schedule import Schedule
from search_jobs.baselines import Baseline, Baselines
from search_jobs.config import PACE, JobConfig
from search_jobs.dask_executor import DaskExecutor
from search_jobs.distilled import refuse_distilled, solvers
from search_jobs.evaluator import LEDGER, EvaluationTask, Evaluator
from search_jobs.executor import Executor, LocalExecutor
from search_jobs.ledger import Ledger
from search_jobs.lock import lock
from search_jobs.objective import Evaluation, Objective
from search_jobs.optimiser import Child, Evolution, Point, survivors
from search_jobs.progress import Progress
from search_jobs.results import BudgetChoice, SearchResults
from search_jobs.space import Genome, Space
from search_jobs.stages import RUNGS, figures_at, fit_at
from search_jobs.throughput import Throughput

log = logging.getLogger(__name__)

CONFIG = "config.json"
K = TypeVar("K", bound=Hashable)
RIVALS = 3  # baselines of each budget that are measured on more images than the first few


class Job:
    """One run folder: config.json, ledger.jsonl, the teacher's outputs, and at the end report.json."""

    def __init__(
        self, config: JobConfig, folder: Path, progress: Progress, workers: int = 1, scheduler: str | None = None
    ) -> None:
        """Keep other processes out of the folder while this object lives, and load the model.

        With several `workers`, or the address of a Dask `scheduler`, other processes evaluate. Raises `InvalidInput` when the
        folder belongs to a job with another configuration, `Conflict` when another process is at work in it.
        """
        self.config, self.folder, self.progress = config, folder, progress
        self.workers, self.scheduler = workers, scheduler
        self._lock = lock(folder)
        self._refuse_foreign_folder()
        self.evaluator = Evaluator.open(config, folder)
        refuse_distilled(self.evaluator.model, config)
        model, high = self.evaluator.model, min(config.max_segments, config.teacher_steps)
        self.space = Space(
            model=model.ref,
            levels=model.levels,
            branches=model.network.branches,
            teacher_steps=config.teacher_steps,
            solvers=solvers(model),
            segments=(min(2, high), high),
            max_partial=config.max_partial,
            retime=config.retime,
            offsets=config.offsets,
        )
        write_json(folder / CONFIG, config.model_dump(mode="json"))  # now that every input was found good
        self.baselines = Baselines(
            model.ref, model.levels, model.network.branches, lambda schedule: self.cost(schedule), solvers(model)
        )
        self.ledger = Ledger(folder / LEDGER)
        self.throughput: dict[str, Throughput] = {}  # of each stage, for what this process did not find in the ledger
        self.upcast = False  # whether it was said that the decoder is
        self.fitted: dict[Genome, Schedule] = {}  # with the corrections of the highest rung that fits them

    def run(self) -> dict[str, Any]:
        """Search, decide, measure, write report.json and return it. Run again on the same folder, it resumes where it was."""
        started, prompts = datetime.now(UTC), self.evaluator.prompts()
        if prompts["cut"]:
            log.warning("%(cut)d of %(prompts)d prompts are longer than the %(tokens)d tokens that the model reads", prompts)
        with self.executor() as executor:  # before the teacher's images: a wrong address is reported at once
            for stage in self.evaluator.stages:
                self.objective(stage)
            evolution = self._search(executor)
            baselines = {budget: self._strongest_baselines(budget) for budget in self.config.ceilings}
            rivals = self.rivals(executor, baselines)
            choices = self._decide(executor, evolution, rivals)
            choices = self._scaled(executor, choices)
            chosen = {schedule.digest: schedule for choice in choices for schedule in choice.schedules()}
            self.progress.begin("held-out", len(chosen) * self.config.heldout)
            self.evaluate(executor, "held-out", chosen.values(), fitting=False)
            for scale in self.config.other_scales:
                self.progress.begin(f"held-out at guidance {scale:g}", len(chosen) * self.config.scaled)
                self.evaluate(executor, figures_at(scale), chosen.values(), fitting=False)
        results = SearchResults(
            config=self.config,
            evaluator=self.evaluator,
            space=self.space,
            ledger=self.ledger,
            evolution=evolution,
            fitted=self.fitted,
            rivals=rivals,
            choices=choices,
            started=started,
            throughput=self.throughput,
        )
        report = results.document(self.folder)
        write_json(self.folder / "report.json", report)
        return report

    def executor(self) -> Executor:
        """Workers of a Dask cluster where some were asked for, else this process."""
        if self.workers > 1 or self.scheduler is not None:
            return DaskExecutor(self.config, self.folder, self.workers, self.scheduler)
        return LocalExecutor(self.evaluator)

    def _search(self, executor: Executor) -> Evolution:
        """Generations of children that climb the rungs."""
        config = self.config
        by_hand = [baseline.schedule for budget in config.ceilings for baseline in self._strongest_baselines(budget)]
        evolution = Evolution(
            self.space,
            initial=[genome for schedule in by_hand if (genome := self.space.adopt(schedule)) is not None],
            cost_of=lambda genome: self.cost(self.space.schedule(genome)),
            budgets=config.ceilings,
            population=config.population,
            seed=config.seed,
        )
        try:
            while evolution.generation <= config.generations:
                children = evolution.ask()
                name = f"generation {evolution.generation}" if evolution.generation else "from baselines"
                self.progress.begin(name, self._ladder(len(children)))
                evolution.tell(self._climb(executor, children))
        except KeyboardInterrupt:
            if not evolution.history:
                raise
            self.progress.begin("stopped: deciding by what was found (Ctrl-C again leaves at once)", 0)
        return evolution

    def _strongest_baselines(self, budget: float) -> list[Baseline]:
        return list(self.baselines.strongest(budget, self.config.teacher_steps))

    def _ladder(self, children: int) -> int:
        """About how many images so many children take: how many climb on depends on the budgets that they share."""
        config, climbing, total = self.config, children, 0
        for images_per_child in (config.screen, config.images, config.select):
            total += climbing * images_per_child
            climbing = min(climbing, max(len(config.ceilings), round(config.share * climbing)))
        return total

    def _climb(self, executor: Executor, children: Sequence[Child]) -> list[Point]:
        """Evaluate the children rung by rung; return each with its loss on the highest rung that it reached.

        On the last rung the loss is the mean over that rung's images and those of the rung before.
        """
        points: dict[Genome, Point] = {}
        climbing, fitted = list(children), dict[Genome, Schedule]()
        for rung, stage in enumerate(RUNGS):
            fitting = self.config.correct and stage != "select"
            entered = {c.genome: fitted[c.genome] if stage == "select" else self.space.schedule(c.genome) for c in climbing}
            evaluations = self.evaluate(executor, stage, entered.values(), fitting)
            for genome, evaluation in zip(entered, evaluations, strict=True):
                fitted[genome], measurement = evaluation.schedule, evaluation.measurement
                loss = measurement.loss
                if stage == "select":
                    before, weights = points[genome].loss, (self.config.images, self.config.select)
                    loss = (weights[0] * before + weights[1] * loss) / sum(weights)
                points[genome] = Point(genome, measurement.cost, loss, rung)
            climbing = survivors(climbing, lambda genome: points[genome].loss, self.config.share)
        self.fitted |= fitted
        return list(points.values())

    def rivals(self, executor: Executor, groups: Mapping[K, Sequence[Baseline]]) -> dict[K, list[Baseline]]:
        """The strongest baselines of each group, as a user would set them: no corrections. The best first.

        All are evaluated on the images of the first rung, the best of each group also on those of the second.
        """
        ranked = {name: list(baselines) for name, baselines in groups.items()}
        for stage in ("screen", "search"):
            losses = self._losses(executor, stage, [baseline for baselines in ranked.values() for baseline in baselines])
            for name, baselines in ranked.items():
                ranked[name] = sorted(baselines, key=lambda baseline: losses[baseline.schedule.digest])[:RIVALS]
        return ranked

    def _losses(self, executor: Executor, stage: str, baselines: Sequence[Baseline]) -> dict[str, float]:
        """Each baseline's loss in a stage, by digest."""
        schedules = {baseline.schedule.digest: baseline.schedule for baseline in baselines}
        self.progress.begin(f"by hand, {stage}", len(schedules) * len(self.evaluator.stages[stage].sample.seeds))
        evaluations = self.evaluate(executor, stage, schedules.values(), fitting=False)
        return {digest: evaluation.measurement.loss for digest, evaluation in zip(schedules, evaluations, strict=True)}

    def _decide(self, executor: Executor, evolution: Evolution, rivals: dict[float, list[Baseline]]) -> list[BudgetChoice]:
        """Choose for each budget among its finalists, on noise they were not picked by: luck does not win twice.

        Finalists are the best points of the search that the budget affords, and the two strongest baselines there, so that no
        tier is worse than what can be set by hand, as far as these images tell.
        """
        finalists = {}
        for budget in self.config.ceilings:
            points = evolution.best(budget)[: self.config.finalists]
            by_hand = [baseline.schedule for baseline in rivals[budget][:2]]
            finalists[budget] = [*(self.fitted[point.genome] for point in points), *by_hand]
            if not finalists[budget]:
                raise InvalidInput(f"nothing costs at most {budget:g} of the teacher", param="tiers")
        everyone = {schedule.digest: schedule for schedules in finalists.values() for schedule in schedules}
        self.progress.begin("finals", len(everyone) * self.config.finals)
        evaluations = self.evaluate(executor, "finals", everyone.values(), fitting=False)
        losses = {digest: evaluation.measurement.loss for digest, evaluation in zip(everyone, evaluations, strict=True)}
        choices = []
        for budget, schedules in finalists.items():
            ranked = sorted(schedules, key=lambda schedule: losses[schedule.digest])
            by_digest = {baseline.schedule.digest: baseline for baseline in rivals[budget]}
            strongest = next((by_digest[s.digest] for s in ranked if s.digest in by_digest), None)
            choices.append(BudgetChoice(ranked[0], strongest, budget, ranked[0]))
        return choices

    def _scaled(self, executor: Executor, choices: Sequence[BudgetChoice]) -> list[BudgetChoice]:
        """The choices with corrections for every guidance scale, fitted at each as the search fitted them at its own."""
        if not self.config.other_scales:
            return list(choices)
        fitted = {choice.schedule.digest: choice.schedule for choice in choices if choice.schedule.corrections}
        fits = {digest: {self.config.guidance: schedule.corrections or ()} for digest, schedule in fitted.items()}
        bare = [schedule.model_copy(update={"corrections": None}) for schedule in fitted.values()]
        for scale in self.config.other_scales:
            self.progress.begin(f"corrections at guidance {scale:g}", len(bare) * self.config.images)
            evaluations = self.evaluate(executor, fit_at(scale), bare, fitting=True)
            for digest, evaluation in zip(fits, evaluations, strict=True):
                fits[digest][scale] = evaluation.schedule.corrections or ()
        return [choice.scaled(fits[choice.schedule.digest]) if choice.schedule.digest in fits else choice for choice in choices]

    def evaluate(self, executor: Executor, stage: str, schedules: Iterable[Schedule], fitting: bool) -> list[Evaluation]:
        """One evaluation per schedule: from the ledger if it is there, else made and written to the ledger at once."""
        tasks = [EvaluationTask(stage, schedule, fitting) for schedule in schedules]
        missing = list({task.schedule.digest: task for task in tasks if self.ledger.get(task) is None}.values())
        throughput, began = self.throughput.setdefault(stage, Throughput()), monotonic()
        for i, evaluation in executor.evaluate(missing, self.progress.advance):
            self.ledger.add(missing[i], evaluation)
            now = monotonic()
            throughput.add(evaluation.measurement.images, evaluation.spent.run, now - began)
            began = now
        return [known for task in tasks if (known := self.ledger.get(task)) is not None]

    def objective(self, stage: str) -> Objective:
        """The stage's objective; its teacher's outputs are computed, unless they are in the folder."""
        self.progress.begin(f"teacher, {stage}", len(self.evaluator.stages[stage].sample.seeds))
        objective = self.evaluator.objective(stage, self.progress.advance)
        if self.evaluator.model.decoder.overflowed and not self.upcast:
            self.upcast = True
            self.progress.begin(f"the decoder overflows in {self.config.dtype}: it runs in a wider type", 0)
        return objective

    def cost(self, schedule: Schedule) -> float:
        """The schedule's MACs relative to the teacher's."""
        return self.evaluator.objective("screen").relative(self.evaluator.model.compile(schedule))

    def _refuse_foreign_folder(self) -> None:
        path = self.folder / CONFIG
        if not path.is_file():
            return
        try:
            stored = JobConfig.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InvalidInput(f"{path} is no configuration of this version: {first_fault(error)}", param="out") from error
        fields = [name for name in JobConfig.model_fields if name not in PACE]
        other = [name for name in fields if getattr(stored, name) != getattr(self.config, name)]
        if other:
            raise InvalidInput(
                f"{self.folder} holds a job with another configuration ({', '.join(other)}); choose another folder",
                param="out",
            )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json.dumps(value, indent=1).encode() + b"\n")
