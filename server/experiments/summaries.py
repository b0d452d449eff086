"""From events to what the judge needs: of each arm and metric, sums by unit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from registry.experiment import Experiment, Metric
from server.experiments.events import Event, Fidelity, Outcome, Rating
from server.experiments.guard import CLIENTS_OWN
from server.experiments.statistics import Moments, moments


@dataclass(frozen=True)
class Summary:
    """One arm: its units and requests, and the moments of each metric over units."""

    arm: str
    units: int
    requests: int
    metrics: Mapping[Metric, Moments]


def summarize(experiment: Experiment, events: Iterable[Event]) -> dict[str, Summary]:
    """By arm. A request counts once however often its outcome was stored; ratings and fidelity are joined by its id.

    Only requests enrolled in this version of the experiment count. Several ratings of a request: the last one counts;
    several images compared: their mean.
    """
    outcomes: dict[str, Outcome] = {}
    ratings: dict[str, float] = {}
    psnr: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if isinstance(event, Outcome):
            if event.enrolment == "enrolled" and (event.experiment, event.version) == (experiment.name, experiment.version):
                outcomes[event.request_id] = event
        elif isinstance(event, Rating):
            ratings[event.request_id] = event.rating
        elif isinstance(event, Fidelity):
            psnr[event.request_id].append(event.psnr)
    values: dict[str, defaultdict[Metric, defaultdict[str, list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in experiment.names
    }
    units: dict[str, set[str]] = {name: set() for name in experiment.names}
    requests = dict.fromkeys(experiment.names, 0)
    for request_id, outcome in outcomes.items():
        arm, unit = outcome.arm, outcome.unit
        if arm not in units or unit is None:
            continue
        units[arm].add(unit)
        requests[arm] += 1
        for metric, value in _values(outcome, ratings.get(request_id), psnr.get(request_id)).items():
            values[arm][metric][unit].append(value)
    return {
        name: Summary(
            name,
            len(units[name]),
            requests[name],
            {metric: _moments(by_unit) for metric, by_unit in values[name].items()},
        )
        for name in experiment.names
    }


def _values(outcome: Outcome, rating: float | None, psnr: list[float] | None) -> dict[Metric, float]:
    values: dict[Metric, float] = {}
    if outcome.outcome not in CLIENTS_OWN:
        values["errors"] = float(outcome.outcome != "ok")
    if outcome.outcome == "ok":
        values["queue_seconds"], values["service_seconds"] = outcome.queue_seconds, outcome.service_seconds
        values["macs"] = float(outcome.macs_executed)
    if rating is not None:
        values["rating"] = rating
    if psnr:
        values["psnr"] = sum(psnr) / len(psnr)
    return values


def _moments(by_unit: Mapping[str, list[float]]) -> Moments:
    return moments([len(values) for values in by_unit.values()], [sum(values) for values in by_unit.values()])
