"""The search job: ask, evaluate, tell, until the generations are done; then decide, and measure on held-out images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from registry.document import first_fault
from registry.errors import InvalidInput
from registry.files import replace_file
from registry.schedule import Schedule, SolverName
from search_jobs.baselines import Baseline, Baselines
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.choice import at_scales, choices
from search_jobs.config import PACE, JobConfig
from search_jobs.dask_executor import DaskExecutor
from search_jobs.distilled import refuse_distilled, solvers
from search_jobs.evaluations import Evaluations
from search_jobs.evaluator import LEDGER, Evaluator
from search_jobs.executor import Executor, LocalExecutor
from search_jobs.ledger import Ledger
from search_jobs.lock import lock
from search_jobs.objective import Evaluation, Objective
from search_jobs.progress import Progress
from search_jobs.results import SearchResults
from search_jobs.screening import K, screened, strongest
from search_jobs.search import Search, intervals, space_of
from search_jobs.stages import FITTED, figures_at, figures_at_size
from search_jobs.throughput import Throughput

log = logging.getLogger(__name__)

CONFIG = "config.json"
BY_HAND = 2  # baselines among the finalists of each budget


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
        model = self.evaluator.model
        self.space = space_of(model, config)
        write_json(folder / CONFIG, config.model_dump(mode="json"))  # now that every input was found good
        self.baselines = Baselines(
            model.ref, self.space.levels, model.network.branches, lambda schedule: self.cost(schedule), solvers(model)
        )
        self.ledger = Ledger(folder / LEDGER)
        self.throughput: dict[str, Throughput] = {}  # of each stage, for what this process did not find in the ledger
        self.upcast = False  # whether it was said that the decoder is

    def run(self) -> dict[str, Any]:
        """Search, decide, measure, write report.json and return it. Run again on the same folder, it resumes where it was."""
        config, started, prompts = self.config, datetime.now(UTC), self.evaluator.prompts()
        if prompts["cut"]:
            log.warning("%(cut)d of %(prompts)d prompts are longer than the %(tokens)d tokens that the model reads", prompts)
        with self.executor() as executor:  # before the teacher's images: a wrong address is reported at once
            for stage in self.evaluator.stages:
                self.objective(stage)
            evaluations = self.evaluations(executor)
            search = self.search(evaluations)
            search.by_hand(self.by_hand())
            search.begin(self.even())
            search.run()
            chosen = choices(
                evaluations, search.finalists(), {budget: rivals[:BY_HAND] for budget, rivals in search.rivals.items()}
            )
            chosen = at_scales(evaluations, chosen, config.guidance, config.other_scales)
            schedules = [schedule for choice in chosen for schedule in choice.schedules()]
            evaluations.losses("held-out", "held-out", schedules)
            for scale in config.other_scales:
                evaluations.losses(f"held-out at guidance {scale:g}", figures_at(scale), schedules)
            for size in config.other_sizes:
                evaluations.losses(f"held-out at {size}", figures_at_size(size), schedules)
        report = SearchResults(self.evaluator, search, chosen, started).document(self.folder)
        write_json(self.folder / "report.json", report)
        return report

    def executor(self) -> Executor:
        """Workers of a Dask cluster where some were asked for, else this process."""
        if self.workers > 1 or self.scheduler is not None:
            return DaskExecutor(self.config, self.folder, self.workers, self.scheduler)
        return LocalExecutor(self.evaluator)

    def search(self, evaluations: Evaluations) -> Search:
        """The search. Where its space has timesteps, it knows the best ones on the path of the images that corrections are
        fitted on, and where corrections are fitted, those of each solver's own steps as well."""
        space, own = self.space, dict[SolverName, BestTimesteps]()
        if space.retime:
            best_for = self.evaluator.objective(FITTED[-1]).best_timesteps
            space = replace(space, best=best_for(None if self.config.correct else space.levels.plain_solver))
            named = solvers(self.evaluator.model) if self.config.correct and space.best else ()
            own = {name: best for name in named if (best := best_for(name))}
        return Search(self.config, space, evaluations, self.cost, own)

    def by_hand(self) -> dict[float, list[Baseline]]:
        """The baselines of each budget."""
        return {budget: list(self.baselines.strongest(budget, self.config.teacher_steps)) for budget in self.config.ceilings}

    def even(self) -> dict[float, list[Schedule]]:
        """The even patterns that a search of each budget begins with."""
        steps, solver, every = self.config.teacher_steps, self.space.solvers[:1], intervals(len(self.baselines.usual))
        return {
            budget: [one.schedule for one in self.baselines.even(budget, steps, solver, every)]
            for budget in self.config.ceilings
        }

    def evaluations(self, executor: Executor) -> Evaluations:
        """The run's evaluations, made by an executor."""
        return Evaluations(self.ledger, executor, self.evaluator.stages, self.progress, self.throughput)

    def evaluate(self, executor: Executor, stage: str, schedules: Iterable[Schedule], fitting: bool) -> list[Evaluation]:
        """One evaluation per schedule."""
        return self.evaluations(executor).of(stage, schedules, fitting)

    def rivals(self, executor: Executor, groups: Mapping[K, Sequence[Baseline]]) -> dict[K, list[Baseline]]:
        """The strongest baselines of each group, the best first."""
        evaluations = self.evaluations(executor)
        return strongest(evaluations, screened(evaluations, groups))

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
            stored = JobConfig.model_validate_json(path.read_bytes()).as_kept()
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
