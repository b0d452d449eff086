"""What a run evaluates: each schedule once a stage, whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic

from registry.schedule import Schedule
from search_jobs.evaluator import EvaluationTask
from search_jobs.executor import Executor
from search_jobs.ledger import Ledger, task_name
from search_jobs.objective import Evaluation
from search_jobs.progress import Progress
from search_jobs.stages import Stage
from search_jobs.throughput import Throughput


@dataclass
class Evaluations:
    """A run's evaluations: from its ledger, or made by the executor and written to the ledger at once.

    throughput: of each stage, for what was not found in the ledger.
    """

    ledger: Ledger
    executor: Executor
    stages: Mapping[str, Stage]
    progress: Progress
    throughput: dict[str, Throughput] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)

    def of(self, stage: str, schedules: Iterable[Schedule], fitting: bool = False) -> list[Evaluation]:
        """One evaluation per schedule, as it is, or with corrections that are fitted in this stage."""
        tasks = [EvaluationTask(stage, schedule, fitting) for schedule in schedules]
        missing = list({task.schedule.digest: task for task in tasks if self.ledger.get(task) is None}.values())
        throughput, began = self.throughput.setdefault(stage, Throughput()), monotonic()
        for i, evaluation in self.executor.evaluate(missing, self.progress.advance):
            self.ledger.add(missing[i], evaluation)
            now = monotonic()
            throughput.add(evaluation.measurement.images, evaluation.spent.run, now - began)
            began = now
        evaluations = [known for task in tasks if (known := self.ledger.get(task)) is not None]
        images = [evaluation.measurement.images for evaluation in evaluations]
        self._asked |= zip(map(task_name, tasks), images, strict=True)
        return evaluations

    def losses(self, part: str, stage: str, schedules: Iterable[Schedule]) -> dict[str, float]:
        """The losses of different schedules as they are, by digest: a part of the job, which its progress is told of."""
        by_digest = {schedule.digest: schedule for schedule in schedules}
        missing = [one for one in by_digest.values() if self.ledger.get(EvaluationTask(stage, one, False)) is None]
        self.progress.begin(part, len(missing) * self.images_of(stage))
        evaluations = self.of(stage, by_digest.values())
        return {digest: evaluation.measurement.loss for digest, evaluation in zip(by_digest, evaluations, strict=True)}

    @property
    def images(self) -> int:
        """Images of all that was asked for so far, each evaluation's once, whether it was made or found."""
        return sum(self._asked.values())

    def images_of(self, stage: str) -> int:
        """How many images a schedule makes in a stage."""
        return len(self.stages[stage].sample.seeds)
