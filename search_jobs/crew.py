"""Who measures schedules: this process, or workers of a Dask cluster. Both give the same answers to the same questions."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from engine.features import Extractor, extractor
from engine.models import Model, load
from registry.errors import InvalidInput
from registry.schedule import Schedule
from search_jobs.config import JobConfig
from search_jobs.objective import Objective, Result
from search_jobs.stages import RUNGS, Stage, stages

GROUP = 4  # schedules that one worker measures in one go: neighbours share their beginnings
RETRIES = 5  # of a group that raised


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
        for i in _by_beginning(tasks):
            result = self.desk.measure(tasks[i])
            done(result.measure.images)
            yield i, result

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


class Cluster(AbstractContextManager["Cluster"]):
    """Workers of a Dask cluster measure: of a local one on 127.0.0.1, or of the scheduler at an address.

    Each worker loads the model once. A group whose worker dies is given to another one, as often as the scheduler allows
    (`distributed.scheduler.allowed-failures`); one that raises is tried `RETRIES` times more.
    """

    def __init__(self, config: JobConfig, folder: Path, workers: int, scheduler: str | None = None) -> None:
        """Raises `InvalidInput` when Dask is not installed or nobody answers at `scheduler`."""
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise InvalidInput("workers: needs Dask: pip install 'distributed'", param="workers") from error
        self.config, self.folder = config.model_dump_json(), str(folder.resolve())
        self._local = None
        if scheduler is None:
            # Without Dask's MALLOC_TRIM_THRESHOLD_: under it every tensor takes fresh pages, two workers were slower than one.
            with dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}}):
                self._local = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address=None,
                    silence_logs=logging.ERROR,
                    preload=__name__,
                )
        try:
            self.client = Client(scheduler or self._local, timeout=30)
        except OSError as error:
            raise InvalidInput(f"scheduler: nobody answers at {scheduler}: {error}", param="scheduler") from error

    def measure(self, tasks: Sequence[Task], done: Callable[[int], None]) -> Iterator[tuple[int, Result]]:
        """In groups of neighbours, as they finish."""
        from distributed import as_completed

        order, workers = _by_beginning(tasks), max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        size = max(1, min(GROUP, len(order) // (2 * workers)))  # two groups for each at least: nobody waits long for the last
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        futures = {
            self.client.submit(
                _measure, self.config, self.folder, [tasks[i] for i in group], retries=RETRIES, pure=False
            ): group
            for group in groups
        }
        for future in as_completed(list(futures)):
            for i, result in zip(futures[future], future.result(), strict=True):
                done(result.measure.images)
                yield i, result

    def __exit__(self, *_: object) -> None:
        """Close the connection, and the local cluster with its workers."""
        self.client.close()
        if self._local is not None:
            self._local.close()


def dask_setup(_: object) -> None:
    """Called by Dask in each worker of a local cluster. Ctrl-C at a terminal reaches workers too, but only the job decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure(config: str, folder: str, tasks: Sequence[Task]) -> list[Result]:
    """In a worker."""
    desk = _desk(config, folder)
    return [desk.measure(task) for task in tasks]


@lru_cache(maxsize=1)
def _desk(config: str, folder: str) -> Desk:
    return Desk.open(JobConfig.model_validate_json(config), Path(folder))


def _by_beginning(tasks: Sequence[Task]) -> list[int]:
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
