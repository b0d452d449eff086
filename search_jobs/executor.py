"""Where schedules are evaluated: in this process, or by workers (`dask_executor.py`). All executors give the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from typing_extensions import override

from search_jobs.evaluator import EvaluationTask, Evaluator
from search_jobs.objective import Evaluation


class Executor(Protocol):
    """Evaluates tasks. A context manager: on leaving, its workers are gone."""

    def evaluate(self, tasks: Sequence[EvaluationTask], done: Callable[[int], None]) -> Iterator[tuple[int, Evaluation]]:
        """Yield each task's index in `tasks` and its result, as results become known.

        `done` is called with the number of images that were just finished.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class LocalExecutor(Executor):
    """Evaluates in this process: on a GPU as many tasks at once as its memory holds, on the CPU one after the other."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    @override
    def evaluate(self, tasks: Sequence[EvaluationTask], done: Callable[[int], None]) -> Iterator[tuple[int, Evaluation]]:
        order = prefix_order(tasks)
        for i, evaluation in zip(order, self.evaluator.evaluate(tasks[i] for i in order), strict=True):
            done(evaluation.measurement.images)
            yield i, evaluation


def prefix_order(tasks: Sequence[EvaluationTask]) -> list[int]:
    """Indices of the tasks, such that schedules that begin alike are neighbours and find each other's UNet calls cached."""

    def beginning(i: int) -> tuple[Any, ...]:
        schedule = tasks[i].schedule
        return (
            tasks[i].stage,
            schedule.solver.name,
            schedule.timesteps or (),
            schedule.solver.teacher_steps,
            str(schedule.segments),
        )

    return sorted(range(len(tasks)), key=beginning)
