"""Who measures schedules: this process, or others (`cluster.py`). All give the same answers to the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from engine.models import Model, load
from evaluation import Extractor, extractor
from registry.schedule import Schedule
from search_jobs.config import JobConfig
from search_jobs.objective import Objective, Result
from search_jobs.stages import RUNGS, Stage, stages


class Task(NamedTuple):
    """A schedule to be measured in a stage, with corrections fitted there or as it is."""

    stage: str
    schedule: Schedule
    fitting: bool


class Crew(Protocol):
    """Measures tasks. A context manager: on leaving, its workers are gone."""

    def measure(self, tasks: Sequence[Task], done: Callable[[int], None]) -> Iterator[tuple[int, Result]]:
        """Each task's place in `tasks` and its result, as they become known; `done` hears of finished images."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""


@dataclass
class Desk:
    """All that a process needs to measure: the model, the extractor, and an objective for each stage that it met."""

    config: JobConfig
    folder: Path
    model: Model
    extractor: Extractor
    stages: dict[str, Stage]
    _objectives: dict[str, Objective] = field(default_factory=dict)

    @classmethod
    def open(cls, config: JobConfig, folder: Path) -> Desk:
        """Load what the configuration names."""
        model = load(config.model, config.device, config.dtype)
        given = stages(config, config.read_prompts())
        return cls(config, folder, model, extractor(config.features, config.device), given)

    def objective(self, stage: str, done: Callable[[int], None] = lambda images: None) -> Objective:
        """The stage's objective. The teacher's outputs are in the run folder, or go there if there is such a folder."""
        if stage not in self._objectives:
            here, config = self.stages[stage], self.config
            self._objectives[stage] = Objective(
                self.model,
                self.extractor,
                here.sample,
                teacher_steps=config.teacher_steps,
                guidance=config.guidance,
                batch=config.batch,
                fitting=here.fitted,
                bootstrap=here.bootstrap,
                memory=config.share_mib << 20 if stage in RUNGS else 0,
                cache=self.folder / f"teacher-{stage}.pt" if self.folder.is_dir() else None,
                samples=self.folder / "samples" if stage == "held-out" and self.folder.is_dir() else None,
                progress=done,
            )
        return self._objectives[stage]

    def measure(self, task: Task) -> Result:
        """One task."""
        return self.objective(task.stage).evaluate(task.schedule, task.fitting)


class Alone(AbstractContextManager["Alone"]):
    """This process measures."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def measure(self, tasks: Sequence[Task], done: Callable[[int], None]) -> Iterator[tuple[int, Result]]:
        """In an order in which neighbours share their beginnings."""
        for i in by_beginning(tasks):
            result = self.desk.measure(tasks[i])
            done(result.measure.images)
            yield i, result

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def by_beginning(tasks: Sequence[Task]) -> list[int]:
    """Places of the tasks, schedules that begin alike beside each other."""

    def beginning(i: int) -> Any:
        schedule = tasks[i].schedule
        return (
            tasks[i].stage,
            schedule.solver.name,
            schedule.timesteps or (),
            schedule.solver.teacher_steps,
            str(schedule.segments),
        )

    return sorted(range(len(tasks)), key=beginning)
