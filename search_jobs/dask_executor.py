"""Schedules evaluated by the workers of a Dask cluster: the same results as in this process, from several at once."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import override

from registry.errors import FlexiError, InvalidInput
from search_jobs.config import JobConfig
from search_jobs.evaluator import EvaluationTask, Evaluator
from search_jobs.executor import Executor, prefix_order
from search_jobs.objective import Evaluation

GROUP = 4  # schedules that one worker evaluates in one go: neighbours share their beginnings
RETRIES = 5  # of a group that raised, and of one whose worker died: Dask counts the two apart
PATIENCE = 30.0  # seconds for a scheduler or a worker to come
KEPT = "what was measured is kept: run the same command again to go on"
PATHS = ("model", "features", "prompts")  # in a configuration


class DaskExecutor(Executor):
    """Evaluates on the workers of a Dask cluster: a local one on 127.0.0.1, or that of the scheduler at an address.

    Each worker loads the model once, from the same absolute path. A group whose worker dies is given to another one, and one
    that raises is tried again, `RETRIES` times each; deaths are counted by the scheduler, so that one of somebody else's allows
    as many as its own `distributed.scheduler.allowed-failures`.
    """

    def __init__(
        self, config: JobConfig, folder: Path, workers: int, scheduler: str | None = None, patience: float = PATIENCE
    ) -> None:
        """Wait up to `patience` seconds for the scheduler, and again for its first worker.

        Raises `InvalidInput` when Dask is not installed, nobody answers at `scheduler`, or it has no worker.
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise InvalidInput("needs Dask: pip install 'distributed'", param="workers") from error
        paths = {name: str(Path(path).absolute()) for name in PATHS if (path := getattr(config, name))}
        self.config, self.folder = config.model_copy(update=paths).model_dump_json(), str(folder.resolve())
        self._workers = workers
        self._local = _local(workers) if scheduler is None else None
        try:
            self.client = Client(scheduler or self._local, timeout=patience)
        except ValueError as error:
            raise InvalidInput(f"expected tcp://host:port, got {scheduler!r}: {error}", param="scheduler") from error
        except OSError as error:
            raise InvalidInput(f"nobody answers at {scheduler}: {error}", param="scheduler") from error
        try:
            self.client.wait_for_workers(1, timeout=patience)
        except TimeoutError as error:
            self.client.close()
            raise InvalidInput(f"{scheduler} has no worker after {patience:g} s", param="scheduler") from error

    @override
    def evaluate(self, tasks: Sequence[EvaluationTask], done: Callable[[int], None]) -> Iterator[tuple[int, Evaluation]]:
        from distributed import CancelledError, KilledWorker, as_completed

        order, workers = prefix_order(tasks), max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        size = max(1, min(GROUP, len(order) // (2 * workers)))  # two groups for each at least: nobody waits long for the last
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        futures = {
            self.client.submit(
                _evaluate, self.config, self.folder, [tasks[i] for i in group], retries=RETRIES, pure=False
            ): group
            for group in groups
        }
        for future in as_completed(list(futures)):
            try:
                evaluations = future.result()
            except KilledWorker as error:
                deaths = error.allowed_failures + 1
                raise FlexiError(f"workers: {deaths} died one after another of the same schedules; {KEPT}") from error
            except CancelledError as error:
                raise FlexiError(f"scheduler: it is gone; {KEPT}") from error
            for i, evaluation in zip(futures[future], evaluations, strict=True):
                done(evaluation.measurement.images)
                yield i, evaluation

    @override
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._local is not None:  # and all of them up: Dask fails to close one between its death and its next start
            latest = time.monotonic() + PATIENCE
            while len(self.client.scheduler_info(n_workers=-1)["workers"]) < self._workers and time.monotonic() < latest:
                time.sleep(0.1)
        self.client.close()
        if self._local is not None:
            self._local.close()


def _local(workers: int) -> Any:
    """A cluster of this machine, for this process alone."""
    import dask
    from distributed import LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": RETRIES,
        # Without Dask's MALLOC_TRIM_THRESHOLD_: under it every tensor takes fresh pages, two workers were slower than one.
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    }
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            memory_limit=None,  # Dask's guess would end a worker whose model is large
            dashboard_address=None,
            silence_logs=logging.ERROR,
            preload=__name__,
        )


def dask_setup(_: object) -> None:
    """Called by Dask in each worker of a local cluster. Ctrl-C at a terminal reaches workers too, but only the job decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _evaluate(config: str, folder: str, tasks: Sequence[EvaluationTask]) -> list[Evaluation]:
    """Evaluate a group of tasks; runs in a worker."""
    evaluator = _evaluator(config, folder)
    return [evaluator.evaluate(task) for task in tasks]


@lru_cache(maxsize=1)
def _evaluator(config: str, folder: str) -> Evaluator:
    return Evaluator.open(JobConfig.model_validate_json(config), Path(folder))
