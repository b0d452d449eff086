"""Guardrails on live traffic: one arm's recent requests against control's. Pure: it takes values, and says when one trips.

A monitor answers fast and crudely: a point estimate beyond its limit, several times in a row, each time with new requests.
What it lets pass the report still weighs with intervals; how often it trips without cause is measured in its test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from registry.experiments.declaration import HIGHER_IS_BETTER, Experiment, Guardrail, Harm, Metric
from server.experiments.events import OutcomeEvent
from server.experiments.request_metrics import ABANDONED, metric_values

MAX_VALUES = 10_000  # of one arm and guardrail, whatever the window
EVIDENCE_DIGITS = 6
REPORTED_AS: dict[Harm, Metric] = {
    "errors": "errors", "abandoned": "abandoned", "service_p95": "service_seconds", "macs": "macs",
}  # fmt: skip
"""The metric of the report that a guardrail's metric takes its values from."""
UNFINISHED = ABANDONED | {"deadline_exceeded"}
"""Outcomes of requests that would have taken longer than they did: to a percentile that is reason enough to count them."""


class GuardrailCheck(NamedTuple):
    """A guardrail held against an arm's newest requests: the figure, what shows it, and whether it trips."""

    guardrail: Guardrail
    arm: str
    figure: float
    trips: bool
    evidence: dict[str, float | int | str]

    @property
    def sentence(self) -> str:
        """What was seen and what the limit is, for people; the evidence has the figures."""
        guardrail = self.guardrail
        return (
            f"arm {self.arm}: {guardrail.metric} by {guardrail.compare} is {self.figure:.4g}, the limit is "
            f"{guardrail.limit:g}, {guardrail.consecutive} checks of {guardrail.minimum_sample} new requests in a row"
        )


def guardrail_values(outcome: OutcomeEvent) -> dict[Harm, float]:
    """What one request says to the guardrails: what it says to the report, and whether its steps were as planned."""
    reported = metric_values(outcome)
    values = {harm: reported[metric] for harm, metric in REPORTED_AS.items() if metric in reported}
    if outcome.outcome in UNFINISHED:
        values["service_p95"] = outcome.service_seconds
    if outcome.outcome == "ok" and outcome.steps_planned:  # of repeats alone none is
        values["unplanned_steps"] = float(outcome.steps_executed != outcome.steps_planned)
    return values


@dataclass
class _Window:
    """Recent values of one arm for one guardrail, oldest first.

    `unchecked`: how many came since the last check; `strikes`: how many of the last checks in a row were beyond the limit.
    """

    times: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_VALUES))
    values: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_VALUES))
    unchecked: int = 0
    strikes: int = 0

    def add(self, time: float, value: float) -> None:
        self.times.append(time)
        self.values.append(value)
        self.unchecked += 1

    def forget(self, before: float) -> None:
        while self.times and self.times[0] < before:
            self.times.popleft()
            self.values.popleft()


class GuardrailMonitor:
    """All guardrails of one version of an experiment. Times are in seconds of any one clock and do not go back."""

    def __init__(self, experiment: Experiment) -> None:
        self._control, self._guardrails = experiment.control, experiment.guardrails
        self._windows: dict[tuple[Guardrail, str], _Window] = {
            (guardrail, arm): _Window() for guardrail in experiment.guardrails for arm in experiment.names
        }
        self._treatments = frozenset(experiment.treatments)

    def observe(self, time: float, arm: str, values: dict[Harm, float]) -> list[GuardrailCheck]:
        """Note what one request of an arm showed, and return the checks that fall due with it.

        The values are those of `guardrail_values`, or the PSNR in dB, which is known later than the others.
        """
        checks = [self._observe(time, arm, guardrail, values[guardrail.metric])
                  for guardrail in self._guardrails if guardrail.metric in values]  # fmt: skip
        return [check for check in checks if check]

    def _observe(self, time: float, arm: str, guardrail: Guardrail, value: float) -> GuardrailCheck | None:
        own, control = self._windows[guardrail, arm], self._windows[guardrail, self._control]
        own.add(time, value)
        if arm not in self._treatments or own.unchecked < guardrail.minimum_sample:
            return None
        for window in (own, control):
            window.forget(time - guardrail.window_seconds)
        needed = own.values if guardrail.compare == "value" else min(own.values, control.values, key=len)
        if len(needed) < guardrail.minimum_sample:
            return None
        own.unchecked = 0
        figure = _compared(guardrail, own.values, control.values)
        own.strikes = own.strikes + 1 if figure > guardrail.limit else 0
        trips = own.strikes >= guardrail.consecutive
        return GuardrailCheck(guardrail, arm, figure, trips, _evidence(guardrail, arm, figure, own, control))


def _statistic(guardrail: Guardrail, values: Iterable[float]) -> float:
    numbers = np.fromiter(values, float)
    return float(np.percentile(numbers, 95) if guardrail.metric == "service_p95" else numbers.mean())


def _compared(guardrail: Guardrail, arm: Iterable[float], control: Iterable[float]) -> float:
    """The figure that is held against the limit: larger is worse."""
    now = _statistic(guardrail, arm)
    if guardrail.compare == "value":
        return now
    was = _statistic(guardrail, control)
    if guardrail.compare == "ratio":
        return now / was if was else float("inf") if now else 1.0
    return was - now if guardrail.metric in HIGHER_IS_BETTER else now - was


def _evidence(guardrail: Guardrail, arm: str, figure: float, own: _Window, control: _Window) -> dict[str, float | int | str]:
    """Plain JSON: it goes into the experiment's history, the audit trail and a log line."""
    evidence: dict[str, float | int | str] = {
        "metric": guardrail.metric,
        "compare": guardrail.compare,
        "limit": guardrail.limit,
        "arm": arm,
        "seen": round(figure, EVIDENCE_DIGITS) if np.isfinite(figure) else "infinite",
        "arm_figure": round(_statistic(guardrail, own.values), EVIDENCE_DIGITS),
        "arm_sample": len(own.values),
        "checks": own.strikes,
    }
    if control.values:
        evidence |= {
            "control_figure": round(_statistic(guardrail, control.values), EVIDENCE_DIGITS),
            "control_sample": len(control.values),
        }
    return evidence
