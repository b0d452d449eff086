"""Times of things that run side by side on one busy machine: only their ratios mean anything, and a ratio has a spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BURST = 0.02  # seconds that one measurement takes at least: a shorter one would measure the clock and the scheduler


@dataclass(frozen=True)
class Spread:
    """Median, and the tenth and ninetieth percentile, of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        """The spread of values (n,), at least one."""
        low, median, high = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.9)))
        return cls(median, low, high, len(values))


def side_by_side(runs: Sequence[Callable[[], object]], repeats: int) -> NDArray[np.float64]:
    """Seconds of one call of each run, (repeats, len(runs)).

    The runs of one repeat follow each other at once, so that the ratios of its seconds are of one moment. Every run is called
    before, to warm up, and then as often in a burst as the fastest needs to fill one.
    """
    calls = max(1, math.ceil(BURST / min(_warm(run) for run in runs)))
    return np.array([[_seconds(run, calls) for run in runs] for _ in range(repeats)])


def _warm(run: Callable[[], object]) -> float:
    """Seconds of a warm call; the first one will do where it takes long."""
    first = _seconds(run, 1)
    return first if first > 50 * BURST else _seconds(run, 1)


def _seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds of one call, the mean of so many in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
