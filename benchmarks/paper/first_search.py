"""What rivals take of the first of our searches: the images that it was fitted on, and what follows from the teacher's path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from registry.schedule import Schedule, SolverName
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.config import JobConfig
from search_jobs.evaluations import Evaluations
from search_jobs.evaluator import Evaluator
from search_jobs.executor import LocalExecutor
from search_jobs.ledger import Ledger
from search_jobs.progress import Progress
from search_jobs.space import LATE
from search_jobs.stages import FITTED

FITS = "corrected.jsonl"  # a ledger of the rivals that were fitted


@dataclass(frozen=True)
class FirstSearch:
    """The images that the search of a configuration, in a folder, fits corrections on. What is fitted here stays in `own`."""

    config: JobConfig
    folder: Path
    own: Path
    progress: Progress
    _known: dict[SolverName, BestTimesteps] = field(default_factory=dict)

    def retimed(self, schedule: Schedule) -> list[Schedule]:
        """A schedule at the best timesteps for as many of its solver's own steps, whatever late ones count."""
        counts, solver = schedule.counts(), schedule.solver.model_copy(update={"karras": False})  # whose levels leave no choice
        chosen = dict.fromkeys(self._best(solver.name).chosen(counts["full"] + counts["partial"], late) for late in LATE)
        changed = schedule.model_copy(update={"solver": solver}).model_dump()
        return [Schedule.model_validate(changed | {"timesteps": timesteps}) for timesteps in chosen if timesteps]

    def corrected(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """Schedules with corrections as our searches fit them."""
        stage, executor = FITTED[-1], LocalExecutor(self._evaluator)
        evaluations = Evaluations(Ledger(self.own / FITS), executor, self._evaluator.stages, self.progress)
        self.progress.begin("rivals corrected", len(schedules) * evaluations.images_of(stage))
        return [evaluation.schedule for evaluation in evaluations.of(stage, schedules, fitting=True)]

    def _best(self, solver: SolverName) -> BestTimesteps:
        """By the errors of the solver's own steps along the teacher's path."""
        if solver not in self._known:
            best = self._evaluator.objective(FITTED[-1]).best_timesteps(solver)
            assert best is not None, "corrections are fitted on these images, and distilled models have no table"
            self._known[solver] = best
        return self._known[solver]

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator.open(self.config, self.folder)
