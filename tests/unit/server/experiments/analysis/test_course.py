"""How intervals came to be: what a report would have said at earlier times."""

from __future__ import annotations

from experiments import experiment, outcome

from server.experiments.analysis.comparison import compare
from server.experiments.analysis.course import course
from server.experiments.analysis.summary import summarise

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


def test_without_requests_of_its_own_it_has_no_course():
    assert course(experiment(), [], 4) == []
    assert course(experiment(), EVENTS, 0) == []
    assert course(experiment(version=2), EVENTS, 4) == []
