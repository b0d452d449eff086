"""Less noise by what was known beforehand: CUPED (Deng, Xu, Kohavi and Walker 2013, section 3), for ratios of sums.

A unit's covariates x are those of its *first* request in the experiment, taken before that was assigned, so the arms can
differ in them by chance only, whatever they do to later requests. With R an arm's figure and x̄ the mean of x over its units,

    difference:  R' = (R_arm − R_control) − θᵀ (x̄_arm − x̄_control)

estimates the same as without θ, for any θ. With the linearised outcome of unit u, ψ_u = (s_u − R n_u) / n̄ (the delta method of
`statistics`; zero for a unit without an observation), its variance is Σ_arms Σ_u (ψ_u − θᵀ (x_u − x̄))² / m², which is least for

    θ = (Σ_arms Sxx / m²)⁻¹ (Σ_arms Sxψ / m²),   Sxx, Sxψ sums of products about the arm's means, m its units.

On logarithms, for ratios, ψ/R takes the place of ψ. θ is estimated: with p covariates the sum is divided by m − 1 − p in place
of m − 1. The confidence sequence of `statistics` stays one: θ̂ − θ and x̄_arm − x̄_control each vanish as sqrt(log log m / m), so
their product is of smaller order than the interval (Waudby-Smith et al. 2024, section 3, treat any such adjustment).
`benchmarks.covariates` measures what is left of these approximations.

A confidence interval's width goes with the root of the variance and that with the root of the units, so `saved`, one less the
ratio of the variances, is the share of units that are not needed for the same width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from server.experiments.analysis import statistics
from server.experiments.analysis.statistics import Effect, Moments
from server.requests.covariates import Covariates

Vector = NDArray[np.float64]

CONSTANT = 1e-5  # of its root mean square: what varies less is rounding


class CovariateMoments(NamedTuple):
    """Sums over all units of an arm: how many, of x (p,) and of x xᵀ (p, p)."""

    units: int
    x: Vector
    xx: Vector


class MetricProducts(NamedTuple):
    """Sums of n x and s x over an arm's units, each (p,): n observations of one metric that add up to s."""

    nx: Vector
    sx: Vector


class AdjustableArm(NamedTuple):
    """One metric of an arm, with its covariates."""

    moments: Moments
    covariates: CovariateMoments
    products: MetricProducts


class AdjustedEffect(NamedTuple):
    """The adjusted effect, and the share of units that the adjustment saves."""

    effect: Effect
    saved: float


def features(known: Covariates | None) -> Vector:
    """Numbers of a unit's first request, (9,): the last one marks that nothing is known, as in events of earlier versions."""
    if known is None:
        return np.array([0.0] * 8 + [1.0])
    turn = 2 * math.pi * (known.arrived.hour + known.arrived.minute / 60) / 24
    return np.array(
        [known.images, known.pixels, known.prompt_characters, known.guidance, known.predicted_seconds, known.teacher_macs,
         math.sin(turn), math.cos(turn), 0.0]
    )  # fmt: skip


def covariate_moments(x: Vector) -> CovariateMoments:
    """Of units' features (units, p)."""
    return CovariateMoments(len(x), x.sum(axis=0), x.T @ x)


def products(counts: ArrayLike, sums: ArrayLike, x: Vector) -> MetricProducts:
    """Of units that brought so many observations with such sums, both (units,), 0 for those without; x (units, p)."""
    return MetricProducts(np.asarray(counts, float) @ x, np.asarray(sums, float) @ x)


def difference(control: AdjustableArm, arm: AdjustableArm, scale: float, alpha: float) -> AdjustedEffect | None:
    """As `statistics.difference`, less what the covariates explain; None where they explain nothing."""
    (was, v_was), (now, v_now) = statistics.mean(control.moments), statistics.mean(arm.moments)
    shift = _shift([control, arm], [1.0, 1.0], float(v_was + v_now))
    if shift is None:
        return None
    estimate, width = now - was - shift.by, statistics.half_width(shift.variance, scale, alpha)
    return AdjustedEffect(Effect(estimate, estimate - width, estimate + width), shift.saved)


def ratio(control: AdjustableArm, arm: AdjustableArm, scale: float, alpha: float) -> AdjustedEffect | None:
    """As `statistics.ratio`, less what the covariates explain; None where they explain nothing."""
    (was, v_was), (now, v_now) = statistics.mean(control.moments), statistics.mean(arm.moments)
    shift = _shift([control, arm], [1 / float(was), 1 / float(now)], float(v_was / was**2 + v_now / now**2))
    if shift is None:
        return None
    change = np.log(now / was) - shift.by
    width = statistics.half_width(shift.variance, math.log1p(scale), alpha)
    return AdjustedEffect(Effect(np.exp(change), np.exp(change - width), np.exp(change + width)), shift.saved)


class _Shift(NamedTuple):
    """What the covariates' imbalance explains of an effect, the variance that is left, and the share of units saved."""

    by: float
    variance: float
    saved: float


def _shift(arms: Sequence[AdjustableArm], factors: Sequence[float], plain: float) -> _Shift | None:
    """Control, then the arm; `factors` multiply ψ. None where no covariate varies, or nothing of the metric does."""
    sxx = [arm.covariates.xx - np.outer(arm.covariates.x, arm.covariates.x) / arm.covariates.units for arm in arms]
    sxy = [factor * _linearised(arm) for arm, factor in zip(arms, factors, strict=True)]
    weights = [1 / arm.covariates.units**2 for arm in arms]
    sizes = np.einsum("a,aii->i", weights, [arm.covariates.xx for arm in arms])
    theta, rank = _solved(np.einsum("a,aij->ij", weights, sxx), np.einsum("a,ai->i", weights, sxy), sizes)
    if not rank or not plain > 0:
        return None
    variance = 0.0
    for arm, factor, a, b in zip(arms, factors, sxx, sxy, strict=True):
        m = arm.covariates.units
        left = max(float(factor**2 * _squares(arm) - 2 * theta @ b + theta @ a @ theta), 0.0)
        variance += left / m**2 * m / max(m - 1 - rank, 1)
    means = [arm.covariates.x / arm.covariates.units for arm in arms]
    return _Shift(float(theta @ (means[1] - means[0])), float(variance), float(1 - variance / plain))


def _linearised(arm: AdjustableArm) -> Vector:
    """Σ_u ψ_u x_u, which is also the sum of products about the means, as the ψ of an arm add up to 0."""
    value, mean_count = arm.moments.s / arm.moments.n, arm.moments.n / arm.covariates.units
    return np.asarray((arm.products.sx - value * arm.products.nx) / mean_count)


def _squares(arm: AdjustableArm) -> float:
    """Σ_u ψ_u²."""
    moments, value = arm.moments, arm.moments.s / arm.moments.n
    return float((moments.ss - 2 * value * moments.ns + value**2 * moments.nn) / (moments.n / arm.covariates.units) ** 2)


def _solved(a: Vector, b: Vector, sizes: Vector) -> tuple[Vector, int]:
    """θ of a θ = b, and how many covariates count. What does not vary beside its own size (p,) is left out.

    Solved in correlations, so that MACs and images weigh alike; what follows from others shares their coefficient.
    """
    spread: Vector = np.sqrt(np.maximum(np.diag(a), 0))
    varies = spread > CONSTANT * np.sqrt(sizes)
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0.0)
    theta, _, rank, _ = np.linalg.lstsq(a * np.outer(scale, scale), b * scale, rcond=1e-9)
    return np.asarray(theta * scale), int(rank)
