"""How intervals came to be: what a report would have said at earlier times."""

from __future__ import annotations

from datetime import timedelta

from experiments import experiment, outcome

from server.experiments.analysis.comparison import compare
from server.experiments.analysis.course import course
from server.experiments.analysis.summary import summarise
from server.experiments.events import FidelityEvent, RatingEvent

EVENTS = [
    outcome(i, arm, i, service_seconds=(1.5 if arm == "control" else 1.0) + i % 7 / 10)
    for i in range(600)
    for arm in ("control", "cheaper")
]


def test_each_point_is_the_report_of_its_time_and_the_last_one_is_of_now():
    declared = experiment()
    points = course(declared, EVENTS, 4)
    assert [point.time for point in points] == sorted({point.time for point in points})
    for point in points:
        control, arm = summarise(declared, [event for event in EVENTS if event.time <= point.time])
        assert point.effect == compare(declared, "service_seconds", control, arm).ratio
        assert point.units == min(control.units, arm.units)
    assert points[-1].units == 600
    assert points[0].effect is None, "150 units are too few"
    widths = [point.effect.high - point.effect.low for point in points if point.effect]
    assert widths == sorted(widths, reverse=True)


def test_what_others_do_after_its_end_does_not_stretch_it():
    """The streams of ratings and fidelities are the model's, and the outcomes of its next version are in its own."""
    later = EVENTS[-1].time + timedelta(days=30)
    others = [
        FidelityEvent(time=later, request_id="of-another", psnr=30.0),
        RatingEvent(time=later, request_id="of-another", rating=1.0),
        outcome(1, "control", 1, time=later, version=2),
    ]
    assert course(experiment(), [*others, *EVENTS], 4) == course(experiment(), EVENTS, 4)


def test_what_is_learned_of_its_own_requests_later_belongs_to_it():
    later = EVENTS[-1].time + timedelta(days=1)
    rating = RatingEvent(time=later, request_id=EVENTS[0].request_id, rating=1.0)
    assert course(experiment(), [*EVENTS, rating], 4)[-1].time == later


def test_without_requests_of_its_own_it_has_no_course():
    assert course(experiment(), [], 4) == []
    assert course(experiment(), EVENTS, 0) == []
    assert course(experiment(version=2), EVENTS, 4) == []
