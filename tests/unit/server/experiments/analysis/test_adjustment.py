"""Covariates narrow an interval, move no estimate, and know nothing of what came after the assignment."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from experiments import START, experiment, outcome

from benchmarks.covariates import MixedTraffic, simulate
from server.experiments import events
from server.experiments.analysis import adjustment, statistics
from server.experiments.analysis.adjustment import AdjustableArm
from server.experiments.analysis.report import as_json, report
from server.experiments.analysis.summary import ArmSummary, summarise
from server.experiments.events import OutcomeEvent

MIX = MixedTraffic("mixed", (0.6, 0.2, 0.05, 0.15), (1.0, 2.25), 0.2, requests=1200)
RETURNING = MixedTraffic("returning", (0.6, 0.2, 0.05, 0.15), (1.0, 2.25), 0.2, returning=3.0, requests=1500)


@pytest.mark.parametrize(("traffic", "effect"), [(MIX, 1.0), (RETURNING, 1.3)], ids=["mixed", "returning"])
def test_the_adjusted_estimate_is_unbiased_and_its_sequence_covers_at_all_looks(traffic: MixedTraffic, effect: float) -> None:
    found = simulate(traffic, 40, effect, seed=3)
    assert abs(found.estimate) < 3.5 * found.error
    assert found.adjusted_alarms <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)
    assert found.saved > 0.4


def test_without_anything_to_explain_nothing_is_saved_and_nothing_lost() -> None:
    found = simulate(MixedTraffic("none", noise=1.0, requests=1200), 30)
    assert abs(found.saved) < 0.05


def arm_of(n: np.ndarray, s: np.ndarray, x: np.ndarray) -> AdjustableArm:
    return AdjustableArm(statistics.moments(n, s), adjustment.covariate_moments(x), adjustment.products(n, s, x))


def test_with_one_request_a_unit_it_is_least_squares_on_arm_and_covariates() -> None:
    """The oracle: values regressed on the arm and on covariates about their arm's mean; the arm's coefficient is the effect."""
    dice = np.random.default_rng(0)
    x = np.column_stack([dice.integers(1, 5, 900).astype(float), dice.normal(5e11, 1e11, 900), np.full(900, 3.0)])
    arm = np.arange(900) % 2 == 0
    y = 1 + 0.5 * x[:, 0] + 1e-12 * x[:, 1] + 0.1 * arm + dice.normal(0, 0.3, 900)
    found = adjustment.difference(arm_of(np.ones(450), y[~arm], x[~arm]), arm_of(np.ones(450), y[arm], x[arm]), 0.05, 0.05)
    assert found is not None
    design = np.column_stack([np.ones(900), arm, x[:, 0], x[:, 1] / 1e12])
    fitted, residual, _, _ = np.linalg.lstsq(design, y, rcond=None)
    assert float(found.effect.estimate) == pytest.approx(fitted[1], rel=1e-6)
    variance = float(residual[0]) / (450 - 3) / 450 * 2 * 449 / 449
    assert float(found.effect.high - found.effect.estimate) == pytest.approx(
        float(statistics.half_width(variance / 2, 0.05, 0.05)), rel=0.01
    )


def known(images: int, minutes: float) -> dict[str, Any]:
    return {
        "arrived": START + timedelta(minutes=minutes), "images": images, "pixels": 4096, "prompt_characters": 9,
        "guidance": 3.0, "predicted_seconds": 0.2 * images, "teacher_macs": 1000 * images,
    }  # fmt: skip


def traffic(units: int = 600) -> list[OutcomeEvent]:
    """Each unit comes twice, with other wishes the second time; seconds follow from the images."""
    dice = np.random.default_rng(1)
    found = []
    for unit in range(units):
        for visit in range(2):
            images = int(dice.integers(1, 5))
            seconds = images * float(dice.lognormal(0, 0.2)) * (1.1 if unit % 2 else 1.0)
            arm = "cheaper" if unit % 2 else "control"
            found.append(
                outcome(2 * unit + visit, arm, unit, service_seconds=seconds, covariates=known(images, unit + 5000 * visit))
            )
    return found


def moments_by_arm(happened: list[OutcomeEvent]) -> list[tuple[Any, Any]]:
    summaries = summarise(experiment(), happened)
    return [(arm.covariates and arm.covariates.x.tolist(), arm.covariates and arm.covariates.xx.tolist()) for arm in summaries]


def changed(change: Callable[[OutcomeEvent], dict[str, Any]]) -> list[OutcomeEvent]:
    return [OutcomeEvent.model_validate(event.model_dump() | change(event)) for event in traffic(40)]


@pytest.mark.parametrize(
    "after",
    [
        lambda _: {"service_seconds": 99.0, "queue_seconds": 7.0, "macs_executed": 1, "macs_planned": 2},
        lambda event: {"outcome": "generation_failed"} if event.arm == "cheaper" else {},
        lambda _: {"steps_executed": 3, "steps_planned": 4, "unet_rows": 8, "fallback": True, "size": "64x64"},
        lambda event: {"time": event.time + timedelta(days=int(event.request_id[1:]) * 7 % 5)},
        lambda event: {"covariates": known(9, 1e5)} if event.covariates.arrived > START + timedelta(minutes=4999) else {},
    ],
    ids=["seconds and macs", "outcome", "execution", "when it ended", "later requests"],
)
def test_nothing_that_comes_after_the_assignment_has_a_part_in_the_covariates(after: Any) -> None:
    assert moments_by_arm(changed(after)) == moments_by_arm(traffic(40))


def test_what_was_known_of_first_requests_has() -> None:
    assert moments_by_arm(changed(lambda _: {"covariates": known(9, 0)})) != moments_by_arm(traffic(40))


def test_the_report_shows_both_intervals_and_decides_by_the_plain_one() -> None:
    happened = traffic()
    page = as_json(report(experiment(), summarise(experiment(), happened), START))
    bare = [OutcomeEvent.model_validate(event.model_dump() | {"covariates": None}) for event in happened]
    plain = as_json(report(experiment(), summarise(experiment(), bare), START))
    (seconds,) = [row for row in page["comparisons"] if row["metric"] == "service_seconds"]
    (before,) = [row for row in plain["comparisons"] if row["metric"] == "service_seconds"]
    assert seconds["ratio"] == before["ratio"]
    assert page["verdict"] == plain["verdict"]
    assert before["adjusted"] is None
    adjusted = seconds["adjusted"]
    assert adjusted["high"] - adjusted["low"] < seconds["ratio"]["high"] - seconds["ratio"]["low"]
    assert adjusted["low"] < 1.1 < adjusted["high"]
    assert 0.1 < adjusted["units_saved"] < 0.9


def test_events_of_earlier_versions_are_read_and_stand_beside_new_ones() -> None:
    happened = traffic()
    half = [
        OutcomeEvent.model_validate(event.model_dump() | ({"covariates": None} if int(event.unit or "0", 16) % 3 else {}))
        for event in happened
    ]
    lines = events.write(half)
    assert [json.loads(line).get("covariates") is None for line in lines.splitlines()].count(True) == 800
    summaries: list[ArmSummary] = summarise(experiment(), events.read("key", lines))
    page = as_json(report(experiment(), summaries, START))
    (seconds,) = [row for row in page["comparisons"] if row["metric"] == "service_seconds"]
    assert 0 < seconds["adjusted"]["units_saved"] < 0.5
