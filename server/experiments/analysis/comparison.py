"""One metric of one arm against control: what the report shows and the verdict follows from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from registry.experiments.declaration import BY_RATIO, SHARES, Experiment, Metric
from server.experiments.analysis import adjustment, statistics
from server.experiments.analysis.statistics import Moments
from server.experiments.analysis.summary import ArmSummary

FEW = 200  # units of an arm below which a metric has no interval: the simulations begin there
METRICS: tuple[Metric, ...] = (
    "queue_seconds", "service_seconds", "errors", "abandoned", "macs", "rating", "psnr", "feature_distance",
)  # fmt: skip
RESOLUTION: dict[Metric, float] = {  # τ where the declaration says nothing: relative, or a difference
    "queue_seconds": 0.05, "service_seconds": 0.05, "errors": 0.01, "abandoned": 0.01, "macs": 0.05, "rating": 0.05,
    "psnr": 0.5, "feature_distance": 0.05,
}  # fmt: skip


class Interval(NamedTuple):
    """An estimate with its always-valid interval, as plain numbers."""

    estimate: float
    low: float
    high: float


class AdjustedInterval(NamedTuple):
    """An interval that covariates made narrower, and the share of units that are not needed for the width of the plain one."""

    interval: Interval
    saved: float


@dataclass(frozen=True)
class MetricComparison:
    """One metric of one arm against control. `difference` and `ratio` are None where there is too little to compare.

    `adjusted` is the same, a ratio for what is compared so, less what covariates explain: see `adjustment`.
    """

    metric: Metric
    arm: str
    value: float | None
    control: float | None
    difference: Interval | None
    ratio: Interval | None
    adjusted: AdjustedInterval | None = None


def compare(experiment: Experiment, metric: Metric, control: ArmSummary, arm: ArmSummary) -> MetricComparison:
    """One metric of an arm against control, at the experiment's α shared equally by all arms that are compared."""
    was, now = control.moments.get(metric), arm.moments.get(metric)
    value, before = _mean(now), _mean(was)
    if was is None or now is None or min(was.units, now.units) < FEW:
        return MetricComparison(metric, arm.name, value, before, None, None)
    tau, alpha = resolution(experiment, metric), experiment.alpha / len(experiment.treatments)
    relative = metric in BY_RATIO
    positive = bool(before and value and before > 0 and value > 0)
    unit = tau * abs(before or 0.0) if relative else tau
    difference = statistics.difference(was, now, unit, alpha, shares=metric in SHARES) if unit else None
    ratio = statistics.ratio(was, now, tau, alpha) if relative and positive else None
    scale = tau if ratio else unit
    adjusted = _adjusted(control, arm, metric, scale, alpha, by_ratio=bool(ratio)) if scale and metric not in SHARES else None
    return MetricComparison(metric, arm.name, value, before, _plain(difference), _plain(ratio), adjusted)


def _adjusted(
    control: ArmSummary, arm: ArmSummary, metric: Metric, scale: float, alpha: float, *, by_ratio: bool
) -> AdjustedInterval | None:
    """Shares are left as they are: the smoothing of their variance is more than covariates explain of them."""
    was, now = control.adjustable(metric), arm.adjustable(metric)
    if was is None or now is None:
        return None
    found = (adjustment.ratio if by_ratio else adjustment.difference)(was, now, scale, alpha)
    interval = _plain(found.effect) if found else None
    return AdjustedInterval(interval, found.saved) if found and interval else None


def resolution(experiment: Experiment, metric: Metric) -> float:
    """τ of a metric's intervals: the effect that the declaration cares about, or a usual one."""
    if metric == experiment.primary.metric:
        return experiment.primary.minimal_effect
    for guardrail in experiment.guardrails:
        if guardrail.metric == metric and guardrail.compare == ("ratio" if metric in BY_RATIO else "difference"):
            return guardrail.limit - 1 if guardrail.compare == "ratio" else guardrail.limit
    return RESOLUTION[metric]


def _mean(arm: Moments | None) -> float | None:
    return float(arm.s / arm.n) if arm else None


def _plain(effect: statistics.Effect | None) -> Interval | None:
    return Interval(*(float(bound) for bound in effect)) if effect else None
