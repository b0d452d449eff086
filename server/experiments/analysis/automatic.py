"""What an automatic ramp does next: a pure function of an experiment, its report and the time.

It may be asked at any time and as often as one likes, because the intervals that it decides by hold at all times at once: with
probability 1 − α no look ever excludes the truth. So `harm excluded`, `harm shown` and `ship` need no correction for looking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from registry.experiments.catalog import DeclaredExperiment
from registry.experiments.declaration import OVER, Action, Experiment, ExperimentState, Guardrail
from server.experiments.analysis.comparison import FEW, METRICS
from server.experiments.analysis.gate import missing
from server.experiments.analysis.judge import ArmFinding, guardrail_holds, shown_gain, units_with
from server.experiments.analysis.report import Report

RampOutcome = Literal["advanced", "finished", "waiting", "paused", "rolled_back"]
PROMOTE = "promote"  # in a finish's evidence: what is to be promoted, and when that was decided


@dataclass(frozen=True)
class RampDecision:
    """What comes of a look. `action` is what is to be done to the experiment, if anything; `arm` the one to ship, if any."""

    outcome: RampOutcome
    reason: str
    action: Action | None = None
    arm: str | None = None


def decide(declared: DeclaredExperiment, report: Report, now: datetime) -> RampDecision:
    """What to do now. Harm comes first, then whatever keeps anybody from concluding anything, then the stage's own gate."""
    experiment, state = declared
    if state.status != "running":
        return at_rest(state)
    verdict = report.verdict
    if harm := " ".join(_harm(experiment, verdict.findings)):
        return RampDecision("rolled_back", harm, "roll_back")
    if verdict.conclusion == "undecided" and now >= experiment.end:
        return RampDecision("paused", verdict.reason, "finish")
    if verdict.conclusion in ("sample_ratio_mismatch", "stop", "undecided"):
        return RampDecision("paused", verdict.reason, "pause")
    waits_for = missing(declared, report, now) or _nothing_new(state, report) or _not_excluded(report)
    last = state.stage + 1 == len(experiment.ramp)
    if not (waits_for or last):
        share = experiment.ramp[state.stage + 1].share
        return RampDecision("advanced", f"to {share:g} %: {_excluded(report)}", "ramp")
    if not waits_for and verdict.arm:
        return RampDecision("finished", verdict.reason, "finish", verdict.arm)
    waits_for = waits_for or verdict.reason
    minutes = (now - state.history[-1].time).total_seconds() / 60
    if minutes > experiment.ramp[state.stage].minutes + experiment.automatic.patience_minutes:
        return RampDecision("paused", f"inconclusive after {minutes:.0f} minutes at this stage: {waits_for}", "pause")
    return RampDecision("waiting", waits_for)


def at_rest(state: ExperimentState) -> RampDecision:
    """What is to be said of an experiment that splits no traffic: nothing is done to it."""
    newest = state.history[-1]
    said = f"is {state.status}, since {newest.action} by {newest.author}" + (f" ({newest.reason})" if newest.reason else "")
    if state.status in ("rolled_back", "killed"):
        return RampDecision("rolled_back", said)
    if state.status == "finished" and (newest.evidence or {}).get("arm"):
        return RampDecision("finished", said, arm=str((newest.evidence or {})["arm"]))
    if state.status in OVER or state.status == "paused":
        return RampDecision("paused", said)
    return RampDecision("waiting", f"is {state.status}: start it")


def evidence_of(report: Report, decision: RampDecision) -> dict[str, JsonValue]:
    """What the decision was made by, for the audit: units, and each arm's gain with its interval."""
    units: dict[str, JsonValue] = {summary.name: summary.units for summary in report.summaries}
    gains: dict[str, JsonValue] = {
        finding.arm: dict(finding.gain._asdict()) if finding.gain else None for finding in report.verdict.findings
    }
    evidence: dict[str, JsonValue] = {"automatic": True, "units": units, "gain": gains}
    return evidence | ({"arm": decision.arm} if decision.arm else {})


def _harm(experiment: Experiment, findings: tuple[ArmFinding, ...]) -> Iterator[str]:
    """A sentence for each arm that surely does harm."""
    margin, metric = experiment.harm_margin, experiment.primary.metric
    for finding in findings:
        if finding.decision in ("harm", "control_better"):
            yield finding.reason
        elif finding.gain and finding.gain.high < -margin:
            yield f"{finding.arm} is worse than the harm margin of {margin:g} in {metric}, {shown_gain(metric, finding.gain)}."


def _nothing_new(state: ExperimentState, report: Report) -> str | None:
    """After an automatic step: which arms no unit came to since. So a second run right after a first one does nothing."""
    newest = state.history[-1]
    before = (newest.evidence or {}).get("units") if newest.action == "ramp" else None
    if not isinstance(before, dict):
        return None
    unseen = [summary.name for summary in report.summaries if before.get(summary.name) == summary.units]
    return f"no new unit at this stage yet in {', '.join(unseen)}" if unseen else None


def _not_excluded(report: Report) -> str | None:
    """What is not known well enough for a larger share: the primary metric of which arm, or which guardrail."""
    experiment, margin = report.experiment, report.experiment.harm_margin
    by_name = {summary.name: summary for summary in report.summaries}
    for finding in report.verdict.findings:
        metric, control, arm = experiment.primary.metric, by_name[experiment.control], by_name[finding.arm]
        if finding.gain is None:
            units = f"{units_with(metric, control, arm)} of {FEW} units with {metric}"
            return f"{units} in {finding.arm} or control, too few to exclude harm"
        if finding.gain.low <= -margin:
            shown = shown_gain(metric, finding.gain)
            return f"{finding.arm} may be worse than the harm margin of {margin:g} in {metric}, {shown}"
        waiting = [one.metric for one in _judged(experiment) if not guardrail_holds(experiment, one, control, arm)]
        if waiting:
            return f"{finding.arm} is not yet surely within the limit of {', '.join(waiting)}"
    return None


def _excluded(report: Report) -> str:
    metric, margin = report.experiment.primary.metric, report.experiment.harm_margin
    gains = [f"{one.arm} {shown_gain(metric, one.gain)}" for one in report.verdict.findings if one.gain]
    return f"harm beyond {margin:g} in {metric} is excluded ({'; '.join(gains)}), guardrails hold"


def _judged(experiment: Experiment) -> list[Guardrail]:
    """Those of which a report knows something; the others are the servers' alone, and end the experiment where they trip."""
    return [guardrail for guardrail in experiment.guardrails if guardrail.metric in METRICS]
