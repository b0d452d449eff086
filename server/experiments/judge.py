"""What follows from an experiment's figures. Pure: the same summaries give the same verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from registry.experiment import BY_RATIO, HIGHER_IS_BETTER, SHARES, Experiment, Metric
from server.experiments import statistics
from server.experiments.summaries import Summary

Decision = Literal["keep collecting", "ship", "ship, no worse", "keep control", "blocked", "no decision"]
SCALES: dict[Metric, float] = {
    "queue_seconds": 0.05,
    "service_seconds": 0.05,
    "macs": 0.05,
    "errors": 0.01,
    "rating": 0.05,
    "psnr": 0.5,
}  # where the intervals are tightest; the primary metric's is its minimal effect


class Compared(NamedTuple):
    """An arm's mean of a metric, and its effect against control with an interval that holds at all times.

    The effect is a ratio for seconds and MACs, a difference otherwise.
    """

    mean: float
    control: float
    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """The decision, the arm it is about, and the reason in a sentence."""

    decision: Decision
    arm: str | None
    reason: str


def mismatch(experiment: Experiment, summaries: Mapping[str, Summary]) -> float:
    """p-value of the arms' units against their weights; not a number without any unit."""
    units = [summaries[name].units for name in experiment.names]
    if not sum(units):
        return math.nan
    return float(statistics.sample_ratio(units, [arm.weight for arm in experiment.arms]))


def compare(experiment: Experiment, metric: Metric, control: Summary, arm: Summary) -> Compared | None:
    """None where either has too few units to say anything. Of several arms each gets its share of alpha."""
    if metric not in control.metrics or metric not in arm.metrics:
        return None
    was, now = control.metrics[metric], arm.metrics[metric]
    if min(was.units, now.units) < 2:
        return None
    alpha = experiment.alpha / len(experiment.treatments)
    scale = experiment.primary.minimal_effect if metric == experiment.primary.metric else SCALES[metric]
    if metric in BY_RATIO:
        effect = statistics.ratio(was, now, scale, alpha)
    else:
        effect = statistics.difference(was, now, scale, alpha, shares=metric in SHARES)
    figures = Compared(float(now.s / now.n), float(was.s / was.n), *(float(value) for value in effect))
    return figures if all(map(math.isfinite, figures)) else None


def judge(experiment: Experiment, summaries: Mapping[str, Summary], now: datetime) -> Verdict:
    """First whether anything may be concluded, then the primary metric, then whether there is time left."""
    p = mismatch(experiment, summaries)
    if p < statistics.MISMATCH:
        shown = ", ".join(f"{name} {summaries[name].units}" for name in experiment.names)
        reason = (
            f"the arms' units ({shown}) do not fit their weights, p = {p:.2g}: something loses or doubles requests of an arm"
        )
        return Verdict("blocked", None, reason)
    smallest, largest = _extremes(summaries)
    over = now >= experiment.end or largest >= experiment.maximum_units
    if smallest < experiment.minimum_units:
        waiting = f"{smallest} of {experiment.minimum_units} units in the smallest arm"
        return Verdict("no decision", None, f"it ended with {waiting}") if over else Verdict("keep collecting", None, waiting)
    return _by_primary(experiment, summaries) or (
        Verdict("no decision", None, "it ended, and every interval still holds both a gain and a loss")
        if over
        else Verdict("keep collecting", None, f"the interval of {experiment.primary.metric} does not decide yet")
    )


def _by_primary(experiment: Experiment, summaries: Mapping[str, Summary]) -> Verdict | None:
    metric, margin = experiment.primary.metric, experiment.primary.minimal_effect
    control = summaries[experiment.control]
    gains: dict[str, tuple[float, float, float]] = {}  # (estimate, low, high), above 0 is better
    for name in experiment.treatments:
        if (found := compare(experiment, metric, control, summaries[name])) is None:
            return None
        gains[name] = _gain(metric, found)
    better = {name: gain for name, gain in gains.items() if gain[1] > 0}
    if better:
        best = max(better, key=lambda name: better[name][0])
        return Verdict("ship", best, f"{metric} of {best} is better than control's: {_interval(metric, gains[best])}")
    if experiment.primary.goal == "not_inferior":
        harmless = {name: gain for name, gain in gains.items() if gain[1] > -_loss(metric, margin)}
        if harmless:
            best = max(harmless, key=lambda name: harmless[name][0])
            reason = f"{metric} of {best} is worse by less than {margin:g}, if at all: {_interval(metric, gains[best])}"
            return Verdict("ship, no worse", best, reason)
    if all(high < 0 for _, _, high in gains.values()):
        worst = min(gains, key=lambda name: gains[name][0])
        return Verdict("keep control", None, f"{metric} of every arm is worse: {worst} {_interval(metric, gains[worst])}")
    return None


def _gain(metric: Metric, found: Compared) -> tuple[float, float, float]:
    """The effect in the direction that is better; of a ratio its logarithm."""
    estimate, low, high = (math.log(x) if metric in BY_RATIO else x for x in (found.effect, found.low, found.high))
    return (estimate, low, high) if metric in HIGHER_IS_BETTER else (-estimate, -high, -low)


def _loss(metric: Metric, margin: float) -> float:
    return math.log1p(margin) if metric in BY_RATIO else margin


def _interval(metric: Metric, gain: tuple[float, float, float]) -> str:
    """The effect as the report shows it."""
    estimate, low, high = gain if metric in HIGHER_IS_BETTER else (-gain[0], -gain[2], -gain[1])
    if metric in BY_RATIO:
        return f"{math.exp(estimate):.3f} times ({math.exp(low):.3f} to {math.exp(high):.3f})"
    return f"{estimate:+.4g} ({low:+.4g} to {high:+.4g})"


def _extremes(summaries: Mapping[str, Summary]) -> tuple[int, int]:
    units = [summary.units for summary in summaries.values()]
    return min(units), max(units)
