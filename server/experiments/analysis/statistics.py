"""The arithmetic of an experiment's report: ratio estimates clustered by unit, always-valid intervals, sample ratio.

An arm's figure is a ratio of sums over requests, R = Σ s_u / Σ n_u, where unit u brought n_u requests with values that add up
to s_u. Units are independent, requests of one unit are not, so the variance is that of units (delta method; Deng, Knoblich
and Lu 2018, arXiv 1803.06336, section 3):

    V(R) = Σ (s_u − R n_u)² / (Σ n_u)² · m / (m − 1),   m units.

An effect's interval is a confidence sequence: it covers at all times at once with probability 1 − α, so one may look after each
request and stop at will. It is the two-sided normal mixture boundary (Robbins 1970; Howard et al. 2021, arXiv 1810.08240,
eq. 14) with the estimated variance put in (Waudby-Smith et al. 2024, arXiv 2103.06476, theorem 2.2, eq. 8). Theirs counts
observations; ours counts information 1/V, because units come back and a returning unit tells less each time:

    estimate ± sqrt( V (V + τ²) / τ² · log( (V + τ²) / (V α²) ) ),

which also inverts the mixture sequential probability ratio test with effects drawn from N(0, τ²) (Johari et al. 2022,
arXiv 1512.04922). τ is the only tuning parameter: the interval is tightest, relative to its standard error, about when its
half-width is τ (1.06 τ at α = 0.05). For a steady stream of requests, an estimate has with an earlier one the covariance that
Brownian motion has at clock 1/V; `benchmarks.false_alarms` measures what is left of the approximations.

All functions take numbers or arrays that broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MISMATCH = 0.001  # a sample ratio with a smaller p-value blocks every conclusion

Array = NDArray[Any]


class Moments(NamedTuple):
    """Sums over an arm's units of 1, n, s, n², s² and n·s: all that a ratio and its variance need."""

    units: Array
    n: Array
    s: Array
    nn: Array
    ss: Array
    ns: Array


class Effect(NamedTuple):
    """An estimate and its always-valid interval."""

    estimate: Array
    low: Array
    high: Array


def moments(counts: ArrayLike, sums: ArrayLike) -> Moments:
    """The moments of units that brought `counts` requests whose values add up to `sums`, both (units,)."""
    n, s = np.asarray(counts, float), np.asarray(sums, float)
    return Moments(*(np.asarray(x, float) for x in (np.size(n), n.sum(), s.sum(), n @ n, s @ s, n @ s)))


def mean(arm: Moments) -> tuple[Array, Array]:
    """The mean over requests, and its variance; not a number where there is less than one request or two units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = arm.s / arm.n
        residual = np.maximum(arm.ss - 2 * value * arm.ns + value**2 * arm.nn, 0)
        return value, residual / arm.n**2 * arm.units / (arm.units - 1)


def share(arm: Moments) -> tuple[Array, Array]:
    """As `mean`, of zeros and ones: a share that is still 0 or 1 is not certain.

    The variance is at least that of independent requests with one success and one failure more (Agresti and Caffo 2000).
    """
    value, variance = mean(arm)
    smoothed = (arm.s + 1) / (arm.n + 2)
    return value, np.maximum(variance, smoothed * (1 - smoothed) / (arm.n + 2))


def half_width(variance: ArrayLike, scale: float, alpha: float) -> Array:
    """Half the width of the confidence sequence above, where `scale` is τ. Without variance it is 0."""
    v, mixed = np.asarray(variance, float), scale**2
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.sqrt(v * (v + mixed) / mixed * (np.log1p(mixed / v) - 2 * math.log(alpha)))
    return np.where(v == 0, 0.0, width)


def difference(control: Moments, arm: Moments, scale: float, alpha: float, *, shares: bool = False) -> Effect:
    """The arm's mean minus control's, both in the metric's unit; `scale` too. `shares`: the values are zeros and ones."""
    estimator = share if shares else mean
    (was, v_was), (now, v_now) = estimator(control), estimator(arm)
    width = half_width(v_was + v_now, scale, alpha)
    return Effect(now - was, now - was - width, now - was + width)


def ratio(control: Moments, arm: Moments, scale: float, alpha: float) -> Effect:
    """The arm's mean divided by control's, both positive; `scale` is a relative change such as 0.05. Computed on logarithms."""
    (was, v_was), (now, v_now) = mean(control), mean(arm)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(now / was)
        width = half_width(v_was / was**2 + v_now / now**2, math.log1p(scale), alpha)
    return Effect(np.exp(change), np.exp(change - width), np.exp(change + width))


def sample_ratio(units: ArrayLike, weights: Sequence[int]) -> Any:
    """p-value of the chi-squared test of units against the arms' weights; units (arms, …), p-values (…)."""
    from scipy.stats import chisquare  # a second to import, which commands without figures need not wait for

    observed, parts = np.asarray(units, float), np.asarray(weights, float) / sum(weights)
    return chisquare(observed, np.multiply.outer(parts, observed.sum(axis=0)), axis=0).pvalue
