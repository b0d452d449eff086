"""From events to what each arm did: sums by unit, of every metric. Analysed as assigned: a fallback counts in its arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from registry.experiments.declaration import Experiment, Metric
from server.experiments.analysis.adjustment import (
    AdjustableArm,
    CovariateMoments,
    MetricProducts,
    Vector,
    covariate_moments,
    features,
    products,
)
from server.experiments.analysis.statistics import Moments, moments
from server.experiments.events import Event, FidelityEvent, OutcomeEvent, RatingEvent
from server.experiments.request_metrics import metric_values
from server.requests.covariates import Covariates


@dataclass(frozen=True)
class ArmSummary:
    """What one arm did. `moments` has the metrics that were seen at all; the percentile is of finished requests, in seconds.

    rfid: the running one that was computed last, on whichever server. `covariates` and `products` are of all its units, by
    what was known of their first requests beforehand.
    """

    name: str
    units: int
    requests: int
    fallbacks: int
    service_p95: float | None
    rfid: float | None
    moments: dict[Metric, Moments]
    covariates: CovariateMoments | None = field(default=None, compare=False)  # arrays are not compared as a whole
    products: dict[Metric, MetricProducts] = field(default_factory=dict, compare=False)

    def adjustable(self, metric: Metric) -> AdjustableArm | None:
        """One metric with the covariates; None where no unit has it."""
        if self.covariates is None or metric not in self.moments:
            return None
        return AdjustableArm(self.moments[metric], self.covariates, self.products[metric])


class _Owner(NamedTuple):
    """The unit that finished a request, and its arm."""

    arm: str
    unit: str


class _Observation(NamedTuple):
    """One value of a metric, and the unit that it counts for."""

    owner: _Owner
    metric: Metric
    value: float


@dataclass
class _Total:
    """How many observations of one metric a unit has, and their sum."""

    count: float = 0.0
    sum: float = 0.0


Totals = dict[Metric, dict[str, _Total]]
"""The totals of one arm, by metric and unit."""


def summarise(experiment: Experiment, events: Iterable[Event]) -> list[ArmSummary]:
    """One summary for each arm, in the declaration's order, of this version's enrolled requests, in whatever order events come.

    Every outcome is a request, whatever its id: clients choose those, and may use one twice. A rating or fidelity belongs to
    the unit that finished a request of its id, and to nobody if several did. Of an id's ratings the latest counts; each image
    that was compared is one observation.
    """
    outcomes, ratings, fidelities = _select(experiment, events)
    owners = _owners(outcomes)
    observations = [*_of_requests(outcomes), *_of_ids(owners, ratings, fidelities)]
    totals = _totals(experiment, observations)
    rfids = _newest_rfids(owners, fidelities)
    return [
        _summary(name, [outcome for outcome in outcomes if outcome.arm == name], totals[name], rfids.get(name))
        for name in experiment.names
    ]


def _select(
    experiment: Experiment, events: Iterable[Event]
) -> tuple[list[OutcomeEvent], list[RatingEvent], list[FidelityEvent]]:
    """The outcomes of this version's enrolled requests, the latest rating of each request id, and all fidelities.

    Ratings and fidelities of other experiments are among them: they have a request id and nothing else.
    """
    outcomes, ratings, fidelities = list[OutcomeEvent](), dict[str, RatingEvent](), list[FidelityEvent]()
    for event in events:
        match event:
            case OutcomeEvent():
                version = event.experiment, event.version
                if event.enrolment == "enrolled" and version == (experiment.name, experiment.version):
                    outcomes.append(event)
            case RatingEvent():
                latest = ratings.get(event.request_id, event)
                ratings[event.request_id] = max(event, latest, key=lambda rating: (rating.time, rating.rating))
            case FidelityEvent():
                fidelities.append(event)
    outcomes.sort(key=lambda outcome: (outcome.time, outcome.unit))  # so that sums are the same to the last bit
    return outcomes, list(ratings.values()), fidelities


def _owner(outcome: OutcomeEvent) -> _Owner:
    assert outcome.arm, "an enrolled request has an arm"
    assert outcome.unit, "an enrolled request has a unit"
    return _Owner(outcome.arm, outcome.unit)


def _owners(outcomes: Iterable[OutcomeEvent]) -> dict[str, _Owner]:
    """By request id, the unit that finished a request of it. An id of which several units did is left out."""
    finished_by: dict[str, set[_Owner]] = defaultdict(set)
    for outcome in outcomes:
        if outcome.outcome == "ok":
            finished_by[outcome.request_id].add(_owner(outcome))
    return {request_id: next(iter(owners)) for request_id, owners in finished_by.items() if len(owners) == 1}


def _of_requests(outcomes: Iterable[OutcomeEvent]) -> Iterator[_Observation]:
    """What requests say by themselves."""
    for outcome in outcomes:
        for metric, value in metric_values(outcome).items():
            yield _Observation(_owner(outcome), metric, value)


def _of_ids(
    owners: Mapping[str, _Owner], ratings: Iterable[RatingEvent], fidelities: Iterable[FidelityEvent]
) -> list[_Observation]:
    """What was learned of requests later on, by their ids. Sorted, so that sums are the same to the last bit."""
    values: list[tuple[str, Metric, float]] = [(rating.request_id, "rating", rating.rating) for rating in ratings]
    for fidelity in fidelities:
        values.append((fidelity.request_id, "psnr", fidelity.psnr))
        if fidelity.feature_distance is not None:
            values.append((fidelity.request_id, "feature_distance", fidelity.feature_distance))
    return [_Observation(owners[name], metric, value) for name, metric, value in sorted(values) if name in owners]


def _totals(experiment: Experiment, observations: Iterable[_Observation]) -> dict[str, Totals]:
    """Counts and sums of all observations, by arm, metric and unit."""
    arms: dict[str, Totals] = {name: defaultdict(lambda: defaultdict(_Total)) for name in experiment.names}
    for (arm, unit), metric, value in observations:
        total = arms[arm][metric][unit]
        total.count += 1
        total.sum += value
    return arms


def _newest_rfids(owners: Mapping[str, _Owner], fidelities: Iterable[FidelityEvent]) -> dict[str, float]:
    """By arm: the rFID that was computed last, whichever server it is of."""
    rfids: dict[str, float] = {}
    for fidelity in sorted(fidelities, key=lambda fidelity: fidelity.time):
        if fidelity.rfid is not None and fidelity.request_id in owners:
            rfids[owners[fidelity.request_id].arm] = fidelity.rfid
    return rfids


def _summary(name: str, outcomes: Sequence[OutcomeEvent], totals: Totals, rfid: float | None) -> ArmSummary:
    """What one arm did, from its own outcomes and totals."""
    x = _features_of_units(outcomes)
    seconds = [outcome.service_seconds for outcome in outcomes if outcome.outcome == "ok"]
    return ArmSummary(
        name=name,
        units=len({outcome.unit for outcome in outcomes}),
        requests=len(outcomes),
        fallbacks=sum(outcome.fallback for outcome in outcomes),
        service_p95=float(np.percentile(seconds, 95)) if seconds else None,
        rfid=rfid,
        moments={metric: _moments(units.values()) for metric, units in totals.items()},
        covariates=covariate_moments(np.array([*x.values()])) if x else None,
        products={metric: _products(units, x) for metric, units in totals.items()} if x else {},
    )


def _features_of_units(outcomes: Sequence[OutcomeEvent]) -> dict[str, Vector]:
    """By unit, what was known of its first request before that was assigned: in later ones an arm may have had a part.

    Nothing where nothing is known of any unit. Which request was first the covariates say themselves: the event's own time
    depends on how long it took.
    """
    first: dict[str, Covariates] = {}
    for outcome in outcomes:
        if outcome.covariates:
            known = first.setdefault(_owner(outcome).unit, outcome.covariates)
            if outcome.covariates.arrived < known.arrived:
                first[_owner(outcome).unit] = outcome.covariates
    units = sorted({_owner(outcome).unit for outcome in outcomes}) if first else []
    return {unit: features(first.get(unit)) for unit in units}


def _products(totals: Mapping[str, _Total], x: Mapping[str, Vector]) -> MetricProducts:
    counted = [totals.get(unit, _Total()) for unit in x]
    return products([one.count for one in counted], [one.sum for one in counted], np.array([*x.values()]))


def _moments(totals: Iterable[_Total]) -> Moments:
    counts, sums = np.array([(total.count, total.sum) for total in totals]).T
    return moments(counts, sums)
