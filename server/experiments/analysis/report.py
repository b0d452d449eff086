"""An experiment's report: a table for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from registry.experiments.declaration import BY_RATIO, SHARES, Experiment, Metric
from server.experiments.analysis.comparison import METRICS, Interval, MetricComparison, compare
from server.experiments.analysis.judge import Verdict, judge
from server.experiments.analysis.summary import ArmSummary


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is known of an experiment at one time."""

    experiment: Experiment
    summaries: Sequence[ArmSummary]
    comparisons: Sequence[MetricComparison]
    verdict: Verdict


def report(experiment: Experiment, summaries: Sequence[ArmSummary], now: datetime) -> Report:
    """Compare every arm with control in every metric, and judge."""
    by_name = {summary.name: summary for summary in summaries}
    control = by_name[experiment.control]
    comparisons = [compare(experiment, metric, control, by_name[name]) for name in experiment.treatments for metric in METRICS]
    return Report(experiment, summaries, comparisons, judge(experiment, summaries, now))


def as_json(report: Report) -> dict[str, Any]:
    """Plain values; an interval is {estimate, low, high}."""
    return {
        "experiment": report.experiment.name,
        "version": report.experiment.version,
        "alpha": report.experiment.alpha,
        "arms": [
            {"name": arm.name, "units": arm.units, "requests": arm.requests, "fallbacks": arm.fallbacks,
             "service_p95": arm.service_p95, "rfid": arm.rfid}
            for arm in report.summaries
        ],
        "comparisons": [
            {"metric": comparison.metric, "arm": comparison.arm, "value": comparison.value, "control": comparison.control,
             "difference": _interval(comparison.difference), "ratio": _interval(comparison.ratio),
             "adjusted": comparison.adjusted and {
                 **comparison.adjusted.interval._asdict(), "units_saved": comparison.adjusted.saved
             }}
            for comparison in report.comparisons
        ],
        "verdict": {
            "outcome": report.verdict.conclusion, "arm": report.verdict.arm, "reason": report.verdict.reason,
            "mismatch": report.verdict.mismatch,
            "findings": [
                {"arm": finding.arm, "decision": finding.decision, "reason": finding.reason, "gain": _interval(finding.gain)}
                for finding in report.verdict.findings
            ],
        },
    }  # fmt: skip


def as_tables(report: Report) -> Group:
    """Arms, comparisons and verdict for a terminal."""
    experiment = report.experiment
    weights = {arm.name: arm.weight for arm in experiment.arms}
    arms = _table(f"{experiment.name} version {experiment.version}, tier {experiment.tier}",
                  "arm", "weight", "units", "requests", "fallbacks", "service p95", "rFID")  # fmt: skip
    for arm in report.summaries:
        name = f"{arm.name} (control)" if arm.name == experiment.control else arm.name
        p95 = "–" if arm.service_p95 is None else f"{arm.service_p95:.3g} s"
        rfid = "–" if arm.rfid is None else f"{arm.rfid:.3g}"
        arms.add_row(name, str(weights[arm.name]), str(arm.units), str(arm.requests), str(arm.fallbacks), p95, rfid)
    level = 1 - experiment.alpha / len(experiment.treatments)
    metrics = _table(f"Against control, with intervals that hold at all times at once ({level:.4g})",
                     "arm", "metric", "control", "arm's", "difference", "ratio", "adjusted", "units saved")  # fmt: skip
    for comparison in report.comparisons:
        what = "macs of a UNet row" if comparison.metric == "macs" else comparison.metric  # guidance takes two rows
        metrics.add_row(comparison.arm, what, *_cells(comparison))
    return Group(arms, metrics, Text(f"{report.verdict.conclusion}: {report.verdict.reason}", style="bold"))


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _cells(comparison: MetricComparison) -> tuple[str, ...]:
    metric, adjusted = comparison.metric, comparison.adjusted
    by_ratio = metric in BY_RATIO and comparison.ratio is not None
    ratio = comparison.ratio
    return (
        _number(metric, comparison.control),
        _number(metric, comparison.value),
        _span(comparison.difference, lambda x: _number(metric, x)),
        _span(ratio, lambda x: f"{x:.3f}") if metric in BY_RATIO else "",
        _span(adjusted.interval, lambda x: f"{x:.3f}" if by_ratio else _number(metric, x)) if adjusted else "",
        f"{adjusted.saved:.0%}" if adjusted else "",
    )


def _span(interval: Interval | None, show: Any) -> str:
    if interval is None:
        return "–"
    return f"{show(interval.estimate)} [{show(interval.low)}, {show(interval.high)}]"


def _number(metric: Metric, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if metric in SHARES else f"{value:.3g}"


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return interval._asdict() if interval else None
