"""What an experiment's numbers mean: a pure function from summaries to a verdict with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from registry.experiments.declaration import BY_RATIO, HIGHER_IS_BETTER, SHARES, Experiment, Guardrail, Metric
from server.experiments.analysis import statistics
from server.experiments.analysis.comparison import METRICS, Interval, MetricComparison, compare
from server.experiments.analysis.summary import ArmSummary

Decision = Literal["collecting", "ship", "ship_not_inferior", "control_better", "no_effect", "harm"]
Conclusion = Literal["collecting", "ship", "ship_not_inferior", "stop", "sample_ratio_mismatch", "undecided"]


@dataclass(frozen=True)
class ArmFinding:
    """What follows for one arm, in a word and in a sentence. `gain` is how much better its primary metric is, if known."""

    arm: str
    decision: Decision
    reason: str
    gain: Interval | None = None


@dataclass(frozen=True)
class Verdict:
    """What follows for the experiment. `arm` is the one to ship, if any; `mismatch` the p-value of the sample ratio."""

    conclusion: Conclusion
    arm: str | None
    reason: str
    mismatch: float | None
    findings: tuple[ArmFinding, ...] = ()


def judge(experiment: Experiment, summaries: Sequence[ArmSummary], now: datetime) -> Verdict:
    """The verdict at this moment. It may be asked for as often as one likes: its intervals hold at all times."""
    p = mismatch(experiment, summaries)
    if p is not None and p < statistics.MISMATCH:
        counts = ", ".join(f"{summary.name} {summary.units}" for summary in summaries)
        reason = f"Units do not follow the weights ({counts}; p = {p:.2g}): find out why before concluding anything."
        return Verdict("sample_ratio_mismatch", None, reason, p)
    by_name = {summary.name: summary for summary in summaries}
    control = by_name[experiment.control]
    findings = tuple(_finding(experiment, control, by_name[name]) for name in experiment.treatments)
    winners = [finding for finding in findings if finding.decision.startswith("ship")]
    if winners:
        best = max(winners, key=lambda finding: finding.gain.estimate if finding.gain else 0.0)
        conclusion: Conclusion = "ship" if best.decision == "ship" else "ship_not_inferior"
        return Verdict(conclusion, best.arm, best.reason, p, findings)
    reasons = " ".join(finding.reason for finding in findings)
    if all(finding.decision != "collecting" for finding in findings):
        return Verdict("stop", None, reasons, p, findings)
    if now >= experiment.end:
        return Verdict("undecided", None, f"Ended without a decision: its time is over. {reasons}", p, findings)
    if max(summary.units for summary in summaries) >= experiment.maximum_units:
        full = f"Ended without a decision: the maximum of {experiment.maximum_units} units is reached."
        return Verdict("undecided", None, f"{full} {reasons}", p, findings)
    return Verdict("collecting", None, reasons, p, findings)


def mismatch(experiment: Experiment, summaries: Sequence[ArmSummary]) -> float | None:
    """p-value of the sample ratio; None while an arm expects fewer than 5 units, where chi-squared is no approximation."""
    weights, units = [arm.weight for arm in experiment.arms], [summary.units for summary in summaries]
    if sum(units) * min(weights) < 5 * sum(weights):
        return None
    return float(statistics.sample_ratio(units, weights))


def _finding(experiment: Experiment, control: ArmSummary, arm: ArmSummary) -> ArmFinding:
    primary, name = experiment.primary, arm.name
    gain = _gain(compare(experiment, primary.metric, control, arm))
    holding = {
        guardrail: guardrail_holds(experiment, guardrail, control, arm)
        for guardrail in experiment.guardrails
        if guardrail.metric in METRICS
    }
    broken = [guardrail.metric for guardrail, holds in holding.items() if holds is False]
    if broken:
        return ArmFinding(name, "harm", f"{name} is worse than control by more than the limit of {', '.join(broken)}.", gain)
    units = units_with(primary.metric, control, arm)
    if units < experiment.minimum_units or gain is None:
        reason = f"Keep collecting: {units} of {experiment.minimum_units} units with {primary.metric} in {name} or control."
        return ArmFinding(name, "collecting", reason, gain)
    margin, shown = primary.minimal_effect, shown_gain(primary.metric, gain)
    wanted = 0.0 if primary.goal == "superior" else -margin
    if gain.high < wanted:
        return ArmFinding(name, "control_better", f"Stop {name}: control is better in {primary.metric}, {shown}.", gain)
    if gain.low > wanted:
        waiting = [guardrail.metric for guardrail, holds in holding.items() if holds is None]
        if waiting:
            reason = (
                f"Keep collecting: {name} is good in {primary.metric}, {shown}, but not yet surely within {', '.join(waiting)}."
            )
            return ArmFinding(name, "collecting", reason, gain)
        if gain.low > 0:
            return ArmFinding(name, "ship", f"Ship {name}: better in {primary.metric}, {shown}.", gain)
        reason = f"Ship {name}: no worse in {primary.metric} by the margin of {margin:g}, {shown}."
        return ArmFinding(name, "ship_not_inferior", reason, gain)
    if primary.goal == "superior" and gain.high < margin:
        reason = f"Stop {name}: whatever it gains in {primary.metric} is below {margin:g}, {shown}."
        return ArmFinding(name, "no_effect", reason, gain)
    return ArmFinding(name, "collecting", f"Keep collecting: {name} in {primary.metric}, {shown}.", gain)


def _gain(comparison: MetricComparison) -> Interval | None:
    """How much better the arm is: relative for seconds and MACs, else a difference; positive is good."""
    interval, neutral = (comparison.ratio, 1.0) if comparison.metric in BY_RATIO else (comparison.difference, 0.0)
    if interval is None:
        return None
    low, high, estimate = interval.low - neutral, interval.high - neutral, interval.estimate - neutral
    return Interval(estimate, low, high) if comparison.metric in HIGHER_IS_BETTER else Interval(-estimate, -high, -low)


def guardrail_holds(experiment: Experiment, guardrail: Guardrail, control: ArmSummary, arm: ArmSummary) -> bool | None:
    """Whether an arm surely holds a limit (True), surely breaks it (False), or neither. A `value` is the monitor's alone."""
    assert guardrail.metric in METRICS, "a percentile has no interval here"
    if guardrail.compare == "value":
        return True
    comparison = compare(experiment, guardrail.metric, control, arm)
    interval = comparison.ratio if guardrail.compare == "ratio" else comparison.difference
    if interval is None:
        return None
    low, high = (-interval.high, -interval.low) if guardrail.metric in HIGHER_IS_BETTER else (interval.low, interval.high)
    return False if low > guardrail.limit else True if high < guardrail.limit else None


def units_with(metric: Metric, *arms: ArmSummary) -> int:
    """The units that have this metric, of the arm that has the fewest."""
    known = [arm.moments.get(metric) for arm in arms]
    return min(int(moments.units) if moments else 0 for moments in known)


def shown_gain(metric: Metric, gain: Interval) -> str:
    """A gain with its interval, for people."""
    if metric in BY_RATIO or metric in SHARES:
        return f"by {gain.estimate:+.1%} (surely {gain.low:+.1%} to {gain.high:+.1%})"
    return f"by {gain.estimate:+.3g} (surely {gain.low:+.3g} to {gain.high:+.3g})"
