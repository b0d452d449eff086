"""How an experiment's intervals came to be what they are: the primary metric's at several times, from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.experiments.declaration import BY_RATIO, Experiment
from server.experiments.analysis.comparison import Interval, compare
from server.experiments.analysis.summary import summarise
from server.experiments.events import Event, OutcomeEvent


@dataclass(frozen=True)
class CoursePoint:
    """What was known at a time: the effect on an arm's primary metric, and the units of the smallest arm.

    effect: a ratio to control for what is compared so, else a difference; None while there is too little to say.
    """

    time: datetime
    arm: str
    units: int
    effect: Interval | None


def course(experiment: Experiment, events: Sequence[Event], marks: int) -> list[CoursePoint]:
    """One point for each treatment at so many times, which lie evenly from the first request to the last event of its own.

    Each is what a report would have said then: events that came later are not in it. Those of other experiments, which go on
    when this one has ended, may be among the events and move nothing.
    """
    version = experiment.name, experiment.version
    own = [event for event in events if isinstance(event, OutcomeEvent) and (event.experiment, event.version) == version]
    if not own:
        return []
    ids = {event.request_id for event in own}
    learned = [event for event in events if not isinstance(event, OutcomeEvent) and event.request_id in ids]
    ordered = sorted([*own, *learned], key=lambda event: event.time)
    first, last = min(event.time for event in own), ordered[-1].time
    points, metric = list[CoursePoint](), experiment.primary.metric
    for mark in range(1, marks + 1):
        time = first + (last - first) * mark / marks if mark < marks else last
        by_name = {arm.name: arm for arm in summarise(experiment, (event for event in ordered if event.time <= time))}
        control = by_name[experiment.control]
        for name in experiment.treatments:
            found = compare(experiment, metric, control, by_name[name])
            effect = found.ratio if metric in BY_RATIO else found.difference
            points.append(CoursePoint(time, name, min(control.units, by_name[name].units), effect))
    return points
