"""The gate of a ramp stage: what must be seen before a larger share of the traffic is split."""

from __future__ import annotations

from datetime import datetime

from registry.experiments.catalog import DeclaredExperiment
from server.experiments.analysis.judge import Conclusion
from server.experiments.analysis.report import Report

AGAINST: tuple[Conclusion, ...] = ("sample_ratio_mismatch", "stop", "undecided")
"""What the report may say that keeps a share from being raised."""


def missing(declared: DeclaredExperiment, report: Report, now: datetime) -> str | None:
    """What the stage still waits for, or what of the report speaks against a larger share; None if nothing does."""
    verdict = report.verdict
    if verdict.conclusion in AGAINST or any(finding.decision == "harm" for finding in verdict.findings):
        return f"{verdict.conclusion}: {verdict.reason}"
    minutes = (now - declared.state.history[-1].time).total_seconds() / 60
    return declared.experiment.ramp[declared.state.stage].missing(minutes, min(summary.units for summary in report.summaries))
