"""Schedules evaluated by the workers of a Dask cluster: the same results as in this process, from several at once."""

from __future__ import annotations

import logging
import math
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from typing_extensions import override

from registry.errors import InvalidInput
from search_jobs.build import build, refuse_other_build
from search_jobs.config import JobConfig
from search_jobs.dask_faults import lost, refused
from search_jobs.evaluator import EvaluationTask, Evaluator
from search_jobs.executor import Executor, prefix_order
from search_jobs.objective import Evaluation
from search_jobs.pieces import usual_extent

GROUP = 4  # schedules that one worker evaluates in one go: neighbours share their beginnings
RETRIES = 5  # of a group that raised, and of one whose worker died: Dask counts the two apart
PATIENCE = 30.0  # seconds for a scheduler or a worker to come
SLACK = 2.0  # seconds in which Dask should notice itself that its patience is over
PATHS = ("model", "features", "prompts")  # in a configuration

_log = logging.getLogger(__name__)


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
            import distributed
        except ImportError as error:
            raise InvalidInput("needs Dask: pip install 'distributed'", param="workers") from error
        if not _log.isEnabledFor(logging.DEBUG):  # Dask logs what we say in a line of our own, with its traceback
            _quieten()
        paths = {name: str(Path(path).absolute()) for name in PATHS if (path := getattr(config, name))}
        self.config, self.folder = config.model_copy(update=paths).model_dump_json(), str(folder.resolve())
        self._workers, self._together = workers, config.together or usual_extent(torch.device(config.device)).together
        self._local = _local(workers) if scheduler is None else None
        try:
            with warnings.catch_warnings(action="ignore"):  # of other versions: what matters is said by `refused` and `build`
                self.client = _within(patience + SLACK, lambda: distributed.Client(scheduler or self._local, timeout=patience))
        except Exception as error:  # of any kind, where no scheduler answers, or one of another version
            raise refused(scheduler, error) from error
        try:
            self.client.wait_for_workers(1, timeout=patience)
        except Exception as error:
            self._close()
            if isinstance(error, TimeoutError):
                raise InvalidInput(f"{scheduler} has no worker after {patience:g} s", param="scheduler") from error
            raise lost(error) from error

    @override
    def evaluate(self, tasks: Sequence[EvaluationTask], done: Callable[[int], None]) -> Iterator[tuple[int, Evaluation]]:
        from distributed import as_completed

        order = prefix_order(tasks)
        with _told():
            workers = max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
            size = group_size(len(order), workers, self._together)
            groups = [order[start : start + size] for start in range(0, len(order), size)]
            futures = {self._submit([tasks[i] for i in group]): group for group in groups}
            completed = iter(as_completed(list(futures)))
        while True:
            with _told():
                if (future := next(completed, None)) is None:
                    return
                evaluations = future.result()
            for i, evaluation in zip(futures[future], evaluations, strict=True):
                done(evaluation.measurement.images)
                yield i, evaluation

    def _submit(self, tasks: Sequence[EvaluationTask]) -> Any:
        """A group's future. The scheduler unpickles what it passes on: here bytes, and a function that every Python has."""
        call = _Call(_evaluate, self.config, self.folder, tasks)
        return self.client.submit(pickle.loads, pickled(_Call(_run, build(), pickled(call))), retries=RETRIES, pure=False)

    @override
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._local is not None:  # and all of them up: Dask fails to close one between its death and its next start
            latest = time.monotonic() + PATIENCE
            with suppress(Exception):
                while len(self.client.scheduler_info(n_workers=-1)["workers"]) < self._workers and time.monotonic() < latest:
                    time.sleep(0.1)
        self._close()

    def _close(self) -> None:
        """Nothing is left to lose: a scheduler that is gone by now is no fault."""
        with suppress(Exception):
            self.client.close()
        if self._local is not None:
            with suppress(Exception):
                self._local.close()


def group_size(tasks: int, workers: int, together: int) -> int:
    """How many neighbours a worker evaluates in one go, where it can run so many schedules `together`.

    On the CPU one after the other, and then two groups for each worker at least: nobody waits long for the last. A GPU gets
    its whole share at once.
    """
    return max(1, min(GROUP, tasks // (2 * workers)), min(together, math.ceil(tasks / workers)))


class _Call:
    """A call that happens where its pickle is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    @override
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._function, self._arguments


def pickled(value: object) -> bytes:
    """Bytes for `pickle.loads`, also of functions that no module can be asked for."""
    import cloudpickle

    return bytes(cloudpickle.dumps(value))


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong with a scheduler or a worker is an error of ours."""
    try:
        yield
    except Exception as error:
        raise lost(error) from error


def _within(seconds: float, make: Callable[[], Any]) -> Any:
    """What `make` returns or raises, or `TimeoutError`: Dask waits without end for the handshake of what is no scheduler."""
    made = SimpleQueue[tuple[Any, Exception | None]]()

    def run() -> None:
        try:
            made.put((make(), None))
        except Exception as error:
            made.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        value, error = made.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no handshake of Dask in {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _quieten() -> None:
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
            silence_logs=logging.CRITICAL,
            preload=__name__,
        )


def dask_setup(_: object) -> None:
    """Called by Dask in each worker of a local cluster. Ctrl-C at a terminal reaches workers too, but only the job decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(client: str, call: bytes) -> Any:
    """Make a call in a worker, if it runs what the client runs. Until then nothing of the call is unpickled."""
    refuse_other_build(client)
    return pickle.loads(call)  # noqa: S301 - the scheduler runs what it is sent, as all of Dask does


def _evaluate(config: str, folder: str, tasks: Sequence[EvaluationTask]) -> list[Evaluation]:
    """Evaluate a group of tasks; runs in a worker."""
    return list(_evaluator(config, folder).evaluate(tasks))


@lru_cache(maxsize=1)
def _evaluator(config: str, folder: str) -> Evaluator:
    return Evaluator.open(JobConfig.model_validate_json(config), Path(folder))
