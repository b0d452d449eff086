"""How sure a figure of a sample of images is, and how sure a difference between two schedules: the balanced bootstrap.

All resamples together hold each image as often (Davison, Hinkley and Schechtman 1986), so that of a mean, which has no bias,
they show none.

Schedules of one sample are resampled alike: an image is drawn for all of them or for none. What is easy or hard about its
prompt and its noise then cancels, so a ratio is far surer than two figures by themselves: their intervals may overlap where
that of the ratio excludes 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

from evaluation.features import Features

RESAMPLES = 200
ENDS = (0.025, 0.975)  # of a 95 % interval
SWAPS = 400  # of a test: p is told to a hundredth or so

Chosen = NDArray[np.int64]  # indices of images, (n,)


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is not excluded."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Resampled:
    """A figure of a sample, and of its resamples (r,)."""

    value: float
    drawn: Features

    def estimate(self) -> Estimate:
        """The figure with its percentile interval, moved by the bias that resampling shows.

        A Fréchet distance is larger for resamples, in which images repeat (Efron and Tibshirani 1993, chapter 10).
        """
        low, high = np.quantile(self.drawn, ENDS) - (self.drawn.mean() - self.value)
        return Estimate(self.value, float(low), float(high))

    def less(self, other: Resampled) -> Estimate:
        """The difference of two schedules of one sample."""
        return Resampled(self.value - other.value, self.drawn - other.drawn).estimate()

    def over(self, other: Resampled) -> Estimate | None:
        """The ratio of two schedules of one sample, in whose logarithm the bias is removed; None where one is not above 0."""
        both = np.stack([np.append(one.drawn, one.value) for one in (self, other)])
        if not (both > 0).all():
            return None
        *drawn, value = np.log(both[0]) - np.log(both[1])
        return Estimate(*map(float, np.exp(Resampled(value, np.array(drawn)).estimate())))


def resampled(figures: Callable[[Chosen], Mapping[str, float]], count: int, resamples: int = RESAMPLES) -> dict[str, Resampled]:
    """What `figures` says of a sample of `count` images, and of resamples: the same ones for every schedule of that sample."""
    whole = figures(np.arange(count))
    balanced = np.random.default_rng(0).permutation(np.tile(np.arange(count), resamples)).reshape(resamples, count)
    drawn = [figures(chosen) for chosen in balanced]
    return {name: Resampled(value, np.array([resample[name] for resample in drawn])) for name, value in whole.items()}


def swap_test(difference: Callable[[Chosen, Chosen], float], count: int, swaps: int = SWAPS) -> float:
    """The p-value of a difference between two schedules of one sample: how often it would be as large by chance (Fisher 1935).

    If they make equally good images, any of the `count` images may as well be the other's of the same noise. difference: of two
    sets of images, by their indices: those of the first schedule are the first `count`, the second's follow. Of a score it is
    the sign test with sizes; of a Fréchet distance to a third sample, which few images inflate, it finds differences where the
    bootstrap's intervals are too wide.
    """
    sets, rng = (np.arange(count), np.arange(count, 2 * count)), np.random.default_rng(0)
    tested = permutation_test(sets, difference, permutation_type="samples", n_resamples=swaps, vectorized=False, rng=rng)
    return float(tested.pvalue)
