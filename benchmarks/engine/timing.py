"""Times of things that run side by side on one busy machine: only their ratios mean anything, and a ratio has a spread."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray

BURST = 0.02  # seconds that one measurement takes at least: a shorter one would measure the clock and the scheduler

Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Median, and the tenth and ninetieth percentile, of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Spread:
        """The spread of values (n,), at least one."""
        low, median, high = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.9)))
        return cls(median, low, high, len(values))


class TimeUp(BaseException):
    """The time of a part is over. Nobody who catches `Exception` keeps it from those who set the limit."""


def settled(device: torch.device) -> Clock:
    """A clock that a device is waited for before it is read: what was asked of it counts in full.

    Of a CPU with one thread, the process's own time: what others do on the machine is no part of it.
    """
    if device.type != "cuda":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def side_by_side(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Clock = time.perf_counter, firsts: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Seconds of one call of each run, (repeats, len(runs)). firsts: the seconds of their first calls, which were made before.

    The runs of one repeat follow each other at once, so that the ratios of its seconds are of one moment. Every run is called
    before, to warm up, and then as often in a row as it needs to fill a burst.
    """
    if firsts is None:
        firsts = [seconds_of(run, 1, clock) for run in runs]
    # A first call that takes long has warmed up: what it took is near enough.
    warm = [first if first > 50 * BURST else seconds_of(run, 1, clock) for run, first in zip(runs, firsts, strict=True)]
    calls = [max(1, math.ceil(BURST / max(seconds, 1e-9))) for seconds in warm]
    return np.array([[seconds_of(*pair, clock) for pair in zip(runs, calls, strict=True)] for _ in range(repeats)])


def seconds_of(run: Callable[[], object], calls: int, clock: Clock) -> float:
    """Seconds of one call, the mean of so many in a row."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TimeUp` in the block once it has taken so long. In the main thread only."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeUp

    handler, start = signal.signal(signal.SIGALRM, stop), time.monotonic()
    others, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        left = max(others - (time.monotonic() - start), 1e-3) if others else 0
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
