"""A monitor trips soon where there is harm, and not on noise."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from experiments import experiment, outcome

from benchmarks import false_alarms
from registry.experiments.declaration import Guardrail, Harm
from server.experiments.events import OutcomeEvent, read, write
from server.experiments.guardrails import GuardrailCheck, GuardrailMonitor, guardrail_values
from server.experiments.request_metrics import metric_values

GOOD: dict[Harm, float] = {
    "service_p95": 1.0,
    "errors": 0.0,
    "abandoned": 0.0,
    "unplanned_steps": 0.0,
    "macs": 100.0,
    "psnr": 30.0,
}
HARMED: list[tuple[dict[str, Any], dict[Harm, float]]] = [
    ({"metric": "service_p95", "compare": "ratio", "limit": 1.5}, {"service_p95": 2.0}),
    ({"metric": "service_p95", "compare": "value", "limit": 1.5}, {"service_p95": 2.0}),
    ({"metric": "errors", "compare": "difference", "limit": 0.05}, {"errors": 1.0}),
    ({"metric": "errors", "compare": "value", "limit": 0.05}, {"errors": 1.0}),
    ({"metric": "abandoned", "compare": "difference", "limit": 0.05}, {"abandoned": 1.0}),
    ({"metric": "unplanned_steps", "compare": "value", "limit": 0.01}, {"unplanned_steps": 1.0}),
    ({"metric": "psnr", "compare": "difference", "limit": 3.0}, {"psnr": 26.0}),
    ({"metric": "macs", "compare": "ratio", "limit": 1.1}, {"macs": 120.0}),
]
NAMES = [f"{rail['metric']} {rail['compare']}" for rail, _ in HARMED]


def test_images_that_were_made_before_say_nothing_of_times_and_macs_and_alone_nothing_at_all() -> None:
    repeats = {"repeats": 2, "macs_planned": 0, "macs_executed": 0, "steps_planned": 0, "steps_executed": 0}
    assert metric_values(outcome(0, "cheaper", 1, **repeats)) == {}
    assert guardrail_values(outcome(0, "cheaper", 1, **repeats)) == {}
    some = {"repeats": 1, "unet_rows": 2}
    assert metric_values(outcome(0, "cheaper", 1, **some)) == {"errors": 0.0, "abandoned": 0.0}
    assert metric_values(outcome(0, "cheaper", 1, outcome="generation_failed", **some))["errors"] == 1.0
    assert metric_values(outcome(0, "cheaper", 1))["macs"] == 100


def test_an_event_without_repeats_is_written_as_it_always_was() -> None:
    assert b"repeats" not in write([outcome(0, "cheaper", 1)])
    (event,) = read("key", write([outcome(0, "cheaper", 1, repeats=2)]))
    assert isinstance(event, OutcomeEvent)
    assert event.repeats == 2


def monitor(**rail: Any) -> GuardrailMonitor:
    return GuardrailMonitor(experiment(guardrails=[{"minimum_sample": 20, "consecutive": 3} | rail]))


def trip(checks: list[GuardrailCheck]) -> GuardrailCheck | None:
    return next((check for check in checks if check.trips), None)


def requests_until_trip(
    one: GuardrailMonitor, bad: dict[Harm, float], limit: int = 1000, start: int = 0
) -> tuple[int, GuardrailCheck | None]:
    for i in range(limit):
        one.observe(start + i, "control", GOOD)
        if tripped := trip(one.observe(start + i, "cheaper", GOOD | bad)):
            return i + 1, tripped
    return limit, None


@pytest.mark.parametrize(("rail", "bad"), HARMED, ids=NAMES)
def test_harm_trips_at_the_third_check_and_shows_its_evidence(rail: dict[str, Any], bad: dict[Harm, float]) -> None:
    count, tripped = requests_until_trip(monitor(**rail), bad)
    assert count == 60
    assert tripped is not None
    assert tripped.arm == "cheaper"
    assert tripped.figure > rail["limit"]
    assert json.loads(json.dumps(tripped.evidence, allow_nan=False)) == tripped.evidence
    assert tripped.evidence["arm_sample"] == 60


def test_every_check_is_returned_whether_it_trips_or_not() -> None:
    one = monitor(metric="errors", compare="difference", limit=0.05)
    checks = [check for i in range(100) for arm in ("control", "cheaper") for check in one.observe(i, arm, GOOD)]
    assert [(check.arm, check.trips, check.figure) for check in checks] == [("cheaper", False, 0.0)] * 5


@pytest.mark.parametrize(("rail", "bad"), HARMED, ids=NAMES)
def test_no_harm_and_harm_to_control_do_not_trip(rail: dict[str, Any], bad: dict[Harm, float]) -> None:
    assert requests_until_trip(monitor(**rail), {})[1] is None
    one = monitor(**rail)
    trips = [
        trip(one.observe(i, arm, GOOD | (bad if arm == "control" else {})))
        for i in range(500)
        for arm in ("control", "cheaper")
    ]
    assert not any(trips)


def test_a_short_burst_passes() -> None:
    one = monitor(metric="errors", compare="difference", limit=0.5, window_seconds=30)
    assert requests_until_trip(one, {"errors": 1.0}, 40)[1] is None
    assert requests_until_trip(one, {}, 500, start=40)[1] is None


def test_harm_after_a_good_start_trips_within_the_window() -> None:
    one = monitor(metric="macs", compare="ratio", limit=1.1, window_seconds=100)
    assert requests_until_trip(one, {}, 5000)[1] is None
    count, tripped = requests_until_trip(one, {"macs": 120.0}, start=5000)
    assert tripped is not None
    assert count <= 100 + 3 * 20


def test_nothing_is_concluded_before_both_arms_have_the_minimum_sample() -> None:
    one = monitor(metric="service_p95", compare="ratio", limit=1.5)
    assert not any(one.observe(i, "cheaper", {"service_p95": 9.0}) for i in range(500))
    for i in range(19):
        one.observe(500, "control", GOOD)
        assert not one.observe(500 + i / 100, "cheaper", {"service_p95": 9.0})


def test_a_ratio_to_nothing_is_harm_with_evidence_that_json_can_hold() -> None:
    one = monitor(metric="macs", compare="ratio", limit=1.1)
    for i in range(100):
        one.observe(i, "control", {"macs": 0.0})
    trips = [trip(one.observe(100, "cheaper", {"macs": 5.0})) for _ in range(60)]
    assert trips[-1] is not None
    assert math.isinf(trips[-1].figure)
    json.dumps(trips[-1].evidence, allow_nan=False)


def test_what_a_request_says() -> None:
    assert guardrail_values(outcome(1, "control", 1, steps_executed=9))["unplanned_steps"] == 1
    good = {"errors": 0, "abandoned": 0, "service_p95": 1.0, "macs": 100, "unplanned_steps": 0}
    assert guardrail_values(outcome(1, "control", 1)) == good
    assert guardrail_values(outcome(1, "control", 1, outcome="engine_failed", steps_executed=2)) == {
        "errors": 1,
        "abandoned": 0,
    }
    assert guardrail_values(outcome(1, "control", 1, outcome="overloaded")) == {}


def test_who_gave_up_waiting_says_that_it_took_at_least_so_long() -> None:
    """Else an arm so slow that nobody waits for it would be an arm without any service time."""
    for code in ("client_gone", "cancelled"):
        values = guardrail_values(outcome(1, "control", 1, outcome=code, service_seconds=10.0))
        assert values == {"abandoned": 1, "service_p95": 10.0}
    late = guardrail_values(outcome(1, "control", 1, outcome="deadline_exceeded", service_seconds=10.0))
    assert late == {"errors": 1, "abandoned": 0, "service_p95": 10.0}


def test_macs_do_not_depend_on_how_many_images_a_client_wants_or_whether_it_guides() -> None:
    assert {guardrail_values(outcome(1, "control", 1, unet_rows=n, macs_executed=100 * n))["macs"] for n in (1, 2, 8)} == {100}


def test_heavy_noise_rarely_trips_and_a_doubled_time_always_does() -> None:
    rail = Guardrail(metric="service_p95", compare="ratio", limit=1.5)
    assert np.isfinite(false_alarms.guard_trips(rail, 20, 5000)).sum() <= 1
    assert np.isfinite(false_alarms.guard_trips(rail, 20, 10_000, harm=2.0)).all()
