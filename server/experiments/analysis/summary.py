"""From events to what each arm did: sums by unit, of every metric. Analysed as assigned: a fallback counts in its arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from registry.experiments.declaration import Experiment, Metric
from server.experiments.analysis.statistics import Moments, moments
from server.experiments.events import Event, FidelityEvent, OutcomeEvent, RatingEvent
from server.experiments.request_metrics import values


@dataclass(frozen=True)
class ArmSummary:
    """What one arm did. `moments` has the metrics that were seen at all; the percentile is of finished requests, in seconds.

    rfid: the newest running one that some server told of it.
    """

    name: str
    units: int
    requests: int
    fallbacks: int
    service_p95: float | None
    rfid: float | None
    moments: dict[Metric, Moments]


def summarise(experiment: Experiment, events: Iterable[Event]) -> list[ArmSummary]:
    """One summary for each arm, in the declaration's order, of this version's enrolled requests, in whatever order events come.

    Every outcome is a request, whatever its id: clients choose those, and may use one twice. A rating or fidelity belongs to
    the unit that finished a request of its id, and to nobody if several did. Of an id's ratings the latest counts; each image
    that was compared is one observation.
    """
    outcomes, fidelities, ratings = list[OutcomeEvent](), list[FidelityEvent](), dict[str, RatingEvent]()
    for event in events:
        match event:
            case RatingEvent(request_id=request_id):
                ratings[request_id] = max(event, ratings.get(request_id, event), key=lambda each: (each.time, each.rating))
            case FidelityEvent():
                fidelities.append(event)
            case OutcomeEvent(enrolment="enrolled") if (event.experiment, event.version) == (
                experiment.name,
                experiment.version,
            ):
                outcomes.append(event)
    outcomes.sort(key=lambda each: (each.time, each.unit))  # so that sums are the same to the last bit
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    sums: dict[str, dict[Metric, dict[str, list[float]]]] = {
        name: defaultdict(lambda: defaultdict(lambda: [0.0, 0.0])) for name in experiment.names
    }

    def add(arm: str, unit: str, metric: Metric, value: float) -> None:
        total = sums[arm][metric][unit]
        total[0] += 1
        total[1] += value

    for outcome in outcomes:
        assert outcome.arm, "an enrolled request has an arm"
        assert outcome.unit, "an enrolled request has a unit"
        if outcome.outcome == "ok":
            owners[outcome.request_id].add((outcome.arm, outcome.unit))
        for metric, value in values(outcome).items():
            add(outcome.arm, outcome.unit, metric, value)
    later: list[tuple[str, Metric, float]] = [(each.request_id, "rating", each.rating) for each in ratings.values()]
    later += [(each.request_id, "psnr", each.psnr) for each in fidelities]
    later += [
        (each.request_id, "feature_distance", each.feature_distance) for each in fidelities if each.feature_distance is not None
    ]
    for request_id, metric, value in sorted(later):
        if len(mine := owners.get(request_id, set())) == 1:
            ((arm, unit),) = mine
            add(arm, unit, metric, value)
    rfids: dict[str, float] = {}
    for each in sorted(fidelities, key=lambda each: each.time):
        if each.rfid is not None and len(mine := owners.get(each.request_id, set())) == 1:
            ((arm, _),) = mine
            rfids[arm] = each.rfid
    return [
        _summary(name, [each for each in outcomes if each.arm == name], sums[name], rfids.get(name))
        for name in experiment.names
    ]


def _summary(name: str, mine: list[OutcomeEvent], sums: dict[Metric, dict[str, list[float]]], rfid: float | None) -> ArmSummary:
    seconds = [each.service_seconds for each in mine if each.outcome == "ok"]
    return ArmSummary(
        name=name,
        units=len({each.unit for each in mine}),
        requests=len(mine),
        fallbacks=sum(each.fallback for each in mine),
        service_p95=float(np.percentile(seconds, 95)) if seconds else None,
        rfid=rfid,
        moments={metric: moments(*np.array(list(units.values())).T) for metric, units in sums.items()},
    )
