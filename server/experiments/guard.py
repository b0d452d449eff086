"""The guardrails of one experiment, watched by one server over what it served itself."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from pydantic import JsonValue

from registry.experiment import HIGHER_IS_BETTER, Experiment, Guardrail, Harm
from server.experiments.events import Outcome

CAPACITY = 10_000  # observations kept of an arm; older ones go, as if they had left the window
CLIENTS_OWN = frozenset({"cancelled", "client_gone", "overloaded", "quota_exceeded", "not_ready", "stopping", "invalid_input"})
"""Outcomes that say nothing of the arm: the client's own doing, or the whole server's."""

UNITS: dict[Harm, str] = {
    "service_p95": "s of service time at the 95th percentile",
    "errors": "of requests failed",
    "unplanned_steps": "of requests ran other steps than planned",
    "psnr": "dB to the teacher",
    "macs": "MACs a request",
}
READ: dict[Harm, Callable[[Sequence[float]], float]] = {
    "service_p95": lambda values: float(np.quantile(values, 0.95)),
    **dict.fromkeys(("errors", "unplanned_steps", "psnr", "macs"), lambda values: float(np.mean(values))),
}


@dataclass(frozen=True)
class Trip:
    """A guardrail that was crossed: the evidence. `control` is None where the limit is on the value itself."""

    arm: str
    metric: Harm
    compare: str
    value: float
    control: float | None
    limit: float
    sample: int
    checks: int

    def evidence(self) -> dict[str, JsonValue]:
        """For the experiment's history and the log."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def sentence(self) -> str:
        """For people."""
        against = "" if self.control is None else f" against {self.control:.4g} of control"
        return (
            f"arm {self.arm}: {self.value:.4g} {UNITS[self.metric]}{against}, "
            f"beyond the {self.compare} limit {self.limit:g} in {self.checks} checks ({self.sample} observations)"
        )


@dataclass
class _Series:
    """Observations of one metric in one arm, and what its guardrail has seen of them."""

    values: deque[tuple[datetime, float]] = field(default_factory=lambda: deque(maxlen=CAPACITY))
    new: int = 0  # since the last check
    beyond: int = 0  # checks in a row

    def since(self, time: datetime) -> list[float]:
        """The values in the window."""
        while self.values and self.values[0][0] < time:
            self.values.popleft()
        return [value for _, value in self.values]


class Guard:
    """Fed by the event loop, checked by another thread. Memory is bounded.

    A check of an arm takes place when it has `minimum_sample` new observations; `consecutive` checks in a row beyond the limit
    trip it. So noise of one check does not, and harm is seen after `minimum_sample · consecutive` observations at the latest.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._rails = {(rail.metric, rail.compare): rail for rail in experiment.guardrails}
        self._series: defaultdict[tuple[str, Harm, str], _Series] = defaultdict(_Series)
        self._lock = threading.Lock()

    def outcome(self, event: Outcome) -> None:
        """An enrolled request ended."""
        if event.outcome in CLIENTS_OWN or event.arm is None:
            return
        failed = event.outcome != "ok"
        seen: dict[Harm, float] = {"errors": float(failed)}
        if not failed:
            seen |= {
                "service_p95": event.service_seconds,
                "unplanned_steps": float(event.steps_executed != event.steps_planned),
                "macs": float(event.macs_executed),
            }
        for metric, value in seen.items():
            self._observe(event.arm, metric, event.time, value)

    def fidelity(self, arm: str, psnr: float, time: datetime) -> None:
        """An image of this arm was held against the teacher's; psnr in dB."""
        self._observe(arm, "psnr", time, psnr)

    def check(self, now: datetime) -> Trip | None:
        """The first guardrail that trips, if one does."""
        with self._lock:
            for rail in self._rails.values():
                for arm in self._experiment.treatments:
                    if trip := self._check(rail, arm, now):
                        return trip
        return None

    def _observe(self, arm: str, metric: Harm, time: datetime, value: float) -> None:
        with self._lock:
            for kind, compare in self._rails:
                if kind == metric:
                    series = self._series[arm, metric, compare]
                    series.values.append((time, value))
                    series.new += 1

    def _check(self, rail: Guardrail, arm: str, now: datetime) -> Trip | None:
        series, since = self._series[arm, rail.metric, rail.compare], now - timedelta(seconds=rail.window_seconds)
        if series.new < rail.minimum_sample:
            return None
        seen = series.since(since)
        control = self._series[self._experiment.control, rail.metric, rail.compare].since(since)
        if len(seen) < rail.minimum_sample or (rail.compare != "value" and len(control) < rail.minimum_sample):
            return None
        series.new = 0
        read = READ[rail.metric]
        value, other = read(seen), None if rail.compare == "value" else read(control)
        series.beyond = series.beyond + 1 if _beyond(rail, value, other) else 0
        if series.beyond < rail.consecutive:
            return None
        return Trip(arm, rail.metric, rail.compare, value, other, rail.limit, len(seen), series.beyond)


def _beyond(rail: Guardrail, value: float, control: float | None) -> bool:
    if control is None:
        return value > rail.limit
    if rail.compare == "ratio":
        return value > rail.limit * control
    return (control - value if rail.metric in HIGHER_IS_BETTER else value - control) > rail.limit
