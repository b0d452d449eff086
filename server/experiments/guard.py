"""Guardrails on live traffic: one arm's recent requests against control's. Pure: it is told, and says when one trips.

A guard answers fast and crudely: a point estimate beyond its limit, several times in a row, each time with new requests.
What it lets pass the judge still weighs with intervals; how often it trips without cause is measured in its test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from registry.experiments.declaration import HIGHER_IS_BETTER, Experiment, Guardrail, Harm, Metric
from server.experiments.events import OutcomeEvent
from server.experiments.request_metrics import ABANDONED, values

KEPT = 10_000  # observations of one arm and guardrail, whatever the window
DIGITS = 6
METRICS: dict[Harm, Metric] = {
    "errors": "errors", "abandoned": "abandoned", "service_p95": "service_seconds", "macs": "macs",
}  # fmt: skip
UNFINISHED = ABANDONED | {"deadline_exceeded"}
"""Outcomes of requests that would have taken longer than they did: to a percentile that is reason enough to count them."""


@dataclass
class _Window:
    """Recent values of one arm for one guardrail, oldest first, and how many came since the last check."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    values: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    new: int = 0
    strikes: int = 0

    def add(self, time: float, value: float) -> None:
        self.times.append(time)
        self.values.append(value)
        self.new += 1

    def forget(self, before: float) -> None:
        while self.times and self.times[0] < before:
            self.times.popleft()
            self.values.popleft()


class Check(NamedTuple):
    """A guardrail held against an arm's newest requests: what was seen, with the figures that show it, and whether it trips."""

    guardrail: Guardrail
    arm: str
    seen: float
    trips: bool
    evidence: dict[str, float | int | str]


def harms(outcome: OutcomeEvent) -> dict[Harm, float]:
    """What one request says to the guardrails: what it says to the report, and whether its steps were as planned."""
    seen = values(outcome)
    told = {harm: seen[metric] for harm, metric in METRICS.items() if metric in seen}
    if outcome.outcome in UNFINISHED:
        told["service_p95"] = outcome.service_seconds
    if outcome.outcome == "ok":
        told["unplanned_steps"] = float(outcome.steps_executed != outcome.steps_planned)
    return told


class Guard:
    """All guardrails of one version of an experiment. Times are in seconds of any one clock and do not go back."""

    def __init__(self, experiment: Experiment) -> None:
        self._control, self._guardrails = experiment.control, experiment.guardrails
        self._windows: dict[tuple[Guardrail, str], _Window] = {
            (guardrail, arm): _Window() for guardrail in experiment.guardrails for arm in experiment.names
        }
        self._treatments = frozenset(experiment.treatments)

    def observe(self, time: float, arm: str, values: dict[Harm, float]) -> list[Check]:
        """Note what one request of an arm showed (see `harms`; `psnr` in dB comes later). The checks that fall due with it."""
        checks = [self._observe(time, arm, guardrail, values[guardrail.metric])
                  for guardrail in self._guardrails if guardrail.metric in values]  # fmt: skip
        return [check for check in checks if check]

    def _observe(self, time: float, arm: str, guardrail: Guardrail, value: float) -> Check | None:
        mine, control = self._windows[guardrail, arm], self._windows[guardrail, self._control]
        mine.add(time, value)
        if arm not in self._treatments or mine.new < guardrail.minimum_sample:
            return None
        for window in (mine, control):
            window.forget(time - guardrail.window_seconds)
        needed = mine.values if guardrail.compare == "value" else min(mine.values, control.values, key=len)
        if len(needed) < guardrail.minimum_sample:
            return None
        mine.new = 0
        seen = _harm(guardrail, mine.values, control.values)
        mine.strikes = mine.strikes + 1 if seen > guardrail.limit else 0
        trips = mine.strikes >= guardrail.consecutive
        return Check(guardrail, arm, seen, trips, _evidence(guardrail, arm, seen, mine, control))


def _figure(guardrail: Guardrail, values: Iterable[float]) -> float:
    numbers = np.fromiter(values, float)
    return float(np.percentile(numbers, 95) if guardrail.metric == "service_p95" else numbers.mean())


def _harm(guardrail: Guardrail, arm: Iterable[float], control: Iterable[float]) -> float:
    """What is held against the limit: larger is worse."""
    now = _figure(guardrail, arm)
    if guardrail.compare == "value":
        return now
    was = _figure(guardrail, control)
    if guardrail.compare == "ratio":
        return now / was if was else float("inf") if now else 1.0
    return was - now if guardrail.metric in HIGHER_IS_BETTER else now - was


def _evidence(guardrail: Guardrail, arm: str, seen: float, mine: _Window, control: _Window) -> dict[str, float | int | str]:
    """Plain JSON: it goes into the experiment's history, the audit trail and a log line."""
    evidence: dict[str, float | int | str] = {
        "metric": guardrail.metric,
        "compare": guardrail.compare,
        "limit": guardrail.limit,
        "arm": arm,
        "seen": round(seen, DIGITS) if np.isfinite(seen) else "infinite",
        "arm_figure": round(_figure(guardrail, mine.values), DIGITS),
        "arm_sample": len(mine.values),
        "checks": mine.strikes,
    }
    if control.values:
        evidence |= {"control_figure": round(_figure(guardrail, control.values), DIGITS), "control_sample": len(control.values)}
    return evidence
