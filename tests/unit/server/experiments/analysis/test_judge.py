"""From events to a verdict, its reason, and the page that shows it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from experiments import DECLARATION, START, experiment, outcome
from rich.console import Console

from registry.errors import Tampered
from registry.experiments.declaration import Experiment
from server.experiments import events
from server.experiments.analysis import judge, report, statistics
from server.experiments.analysis.comparison import RESOLUTION, compare, resolution
from server.experiments.analysis.summary import ArmSummary, summarise
from server.experiments.events import Event, FidelityEvent, OutcomeEvent, RatingEvent

LATER = START + timedelta(days=1)
AFTER_ALL = START + timedelta(days=365)
GUARDED = [{"metric": "errors", "compare": "difference", "limit": 0.005}]
NO_WORSE = {"metric": "service_seconds", "minimal_effect": 0.05, "goal": "not_inferior"}


def made(
    units: int, faster: float = 1.0, cv: float = 0.1, seed: int = 0, change: Callable[[str, int], dict[str, Any]] | None = None
) -> list[Event]:
    """`units` units an arm, two requests each; the arm's service times are multiplied by `faster`."""
    dice, recorded = np.random.default_rng(seed), list[Event]()
    for unit in range(2 * units):
        arm = ("control", "cheaper")[unit % 2]
        own = dice.lognormal(0, cv) * (faster if arm == "cheaper" else 1.0)
        for _ in range(2):
            extra = change(arm, len(recorded)) if change else {}
            recorded.append(outcome(len(recorded), arm, unit, service_seconds=own * dice.lognormal(0, cv), **extra))
    return recorded


def learned(metric: str, control: float, cheaper: float) -> list[Event]:
    """400 requests an arm, alike but for their later ratings or fidelities, which have about these values."""
    dice, recorded = np.random.default_rng(0), list[Event]()
    for i in range(800):
        arm, value = (("control", control), ("cheaper", cheaper))[i % 2]
        recorded.append(outcome(i, arm, i))
        about, fields = value * dice.uniform(0.9, 1.1), {"time": LATER, "request_id": f"r{i}"}
        recorded.append(RatingEvent(rating=about, **fields) if metric == "rating" else FidelityEvent(psnr=about, **fields))
    return recorded


def verdict(one: Experiment, recorded: list[Event], now: Any = LATER) -> judge.Verdict:
    return judge.judge(one, summarise(one, recorded), now)


def test_events_come_back_as_written() -> None:
    recorded: list[Event] = [
        *made(3),
        RatingEvent(time=START, request_id="r1", rating=1),
        FidelityEvent(time=START, request_id="r2", psnr=31),
    ]
    recorded.append(outcome(99, "control", 1, enrolment="bypass", arm=None, unit=None))
    data = events.write(recorded)
    assert data.count(b"\n") == len(recorded)
    assert list(events.read("key", data)) == recorded


@pytest.mark.parametrize("line", [b"{", b"{}", b'{"event": "party"}', b'{"event": "rating", "request_id": "r"}'])
def test_a_damaged_line_is_named(line: bytes) -> None:
    with pytest.raises(Tampered, match="key: line 2 is not an event"):
        list(events.read("key", events.write([outcome(1, "control", 1)]) + line))


def test_an_enrolled_request_has_an_arm_and_no_other_does() -> None:
    with pytest.raises(ValueError, match="unit\n  an enrolled"):
        outcome(1, "control", 1, unit=None)
    with pytest.raises(ValueError, match="arm\n  only an enrolled"):
        outcome(1, "control", 1, enrolment="bypass")


def test_a_summary_counts_by_unit_and_only_this_version() -> None:
    recorded: list[Event] = [
        outcome(1, "control", 1, service_seconds=1), outcome(2, "control", 1, service_seconds=3),
        outcome(3, "control", 2, outcome="engine_failed"), outcome(4, "control", 3, outcome="client_gone"),
        outcome(5, "cheaper", 4, fallback=True, service_seconds=7), outcome(6, "cheaper", 5, version=2),
        outcome(7, "cheaper", 6, experiment="other"),
    ]  # fmt: skip
    later: list[Event] = [
        RatingEvent(time=LATER, request_id="r1", rating=1), RatingEvent(time=START, request_id="r1", rating=0),
        FidelityEvent(time=START, request_id="r5", psnr=30), RatingEvent(time=START, request_id="nobody", rating=0),
    ]  # fmt: skip
    control, cheaper = summarise(experiment(), recorded + later)
    assert (control.units, control.requests, control.fallbacks) == (3, 4, 0)
    assert (cheaper.units, cheaper.requests, cheaper.fallbacks) == (1, 1, 1)
    assert [float(total) for total in control.moments["service_seconds"]] == [1, 2, 4, 4, 16, 8]
    assert (float(control.moments["errors"].s), float(control.moments["errors"].n)) == (1, 3)
    assert (float(control.moments["rating"].s), float(control.moments["rating"].n)) == (1, 1)
    assert float(cheaper.moments["psnr"].s) == 30
    assert "rating" not in cheaper.moments


def test_the_percentile_of_seconds_is_of_finished_requests() -> None:
    dice = np.random.default_rng(0)
    seconds = [float(one) for one in dice.lognormal(0, 1, 100)]
    recorded: list[Event] = [outcome(i, "control", i, service_seconds=one) for i, one in enumerate(seconds)]
    recorded += [outcome(i, "control", i, outcome="engine_failed", service_seconds=1000) for i in range(100, 150)]
    control, cheaper = summarise(experiment(), recorded)
    assert control.service_p95 == pytest.approx(np.percentile(seconds, 95))
    assert cheaper.service_p95 is None


def test_requests_with_the_same_id_are_counted_apart() -> None:
    """A retry hides no failure, and a client that always sends the same id is more than one request."""
    recorded: list[Event] = [outcome(1, "control", 1, outcome="engine_failed"), outcome(1, "control", 1)]
    recorded += [outcome(i, "cheaper", i, request_id="same") for i in range(2, 7)]
    recorded += [RatingEvent(time=LATER, request_id="r1", rating=1), RatingEvent(time=LATER, request_id="same", rating=1)]
    control, cheaper = summarise(experiment(), recorded)
    assert (control.requests, float(control.moments["errors"].n), float(control.moments["errors"].s)) == (2, 2, 1)
    assert float(control.moments["rating"].n) == 1
    assert (cheaper.requests, cheaper.units) == (5, 5)
    assert "rating" not in cheaper.moments, "nobody knows whose it is"


def test_each_image_that_was_compared_is_an_observation_of_its_unit() -> None:
    recorded: list[Event] = [outcome(1, "control", 1, unet_rows=3), outcome(2, "control", 2)]
    recorded += [
        FidelityEvent(time=START, request_id=request, psnr=psnr)
        for request, psnr in (("r1", 30), ("r1", 30), ("r1", 36), ("r2", 20))
    ]
    control, _ = summarise(experiment(), recorded)
    assert [float(total) for total in control.moments["psnr"]] == [2, 4, 116, 10, 96**2 + 20**2, 3 * 96 + 20]


def test_a_summary_does_not_depend_on_the_order_of_events() -> None:
    recorded = made(50, cv=1.0)
    ids = [event.request_id for event in recorded]
    dice = np.random.default_rng(1)
    recorded += [RatingEvent(time=LATER, request_id=name, rating=value) for name in ids[:40] for value in dice.random(2)]
    recorded += [FidelityEvent(time=LATER, request_id=name, psnr=value) for name in ids[:40] for value in dice.normal(30, 5, 3)]
    shuffled = [recorded[i] for i in dice.permutation(len(recorded))]
    assert summarise(experiment(), shuffled) == summarise(experiment(), recorded)


def test_fidelity_has_its_distance_by_unit_and_the_newest_rfid() -> None:
    recorded: list[Event] = [outcome(1, "control", 1), outcome(2, "cheaper", 2)]
    events = [
        FidelityEvent(
            time=START + timedelta(seconds=i), request_id=f"r{2 - i % 2}", psnr=30, feature_distance=0.1 * i, rfid=rfid
        )
        for i, rfid in enumerate((0.5, 0.7, None, 0.8, 0.4))
    ]
    for order in (events, events[::-1]):
        control, cheaper = summarise(experiment(), [*order, *recorded])
        assert (control.rfid, cheaper.rfid) == (0.8, 0.4)
        assert float(cheaper.moments["feature_distance"].s) == pytest.approx(0.6)
        assert [float(arm.moments["feature_distance"].n) for arm in (control, cheaper)] == [2, 3]


def test_a_clear_gain_ships() -> None:
    judged = verdict(experiment(), made(400, faster=0.9))
    assert (judged.conclusion, judged.arm) == ("ship", "cheaper")
    assert "better in service_seconds" in judged.reason
    gain = judged.findings[0].gain
    assert gain is not None
    assert gain.low < 0.1 < gain.high


@pytest.mark.parametrize(
    ("metric", "effect", "control", "better", "worse"),
    [("rating", 0.05, 0.5, 0.7, 0.3), ("psnr", 0.5, 30.0, 35.0, 25.0)],
    ids=["rating", "psnr"],
)
def test_of_ratings_and_psnr_more_is_better(metric: str, effect: float, control: float, better: float, worse: float) -> None:
    one = experiment(primary={"metric": metric, "minimal_effect": effect})
    more, less = verdict(one, learned(metric, control, better)), verdict(one, learned(metric, control, worse))
    assert (more.conclusion, less.conclusion) == ("ship", "stop")
    assert (more.findings[0].decision, less.findings[0].decision) == ("ship", "control_better")
    for judged, gain in ((more, better - control), (less, worse - control)):
        assert judged.findings[0].gain is not None
        assert judged.findings[0].gain.estimate == pytest.approx(gain, rel=0.1)


def test_a_clear_loss_stops_and_so_does_a_gain_that_is_too_small() -> None:
    slower, same = verdict(experiment(), made(400, faster=1.1)), verdict(experiment(), made(3000))
    assert (slower.conclusion, slower.findings[0].decision) == ("stop", "control_better")
    assert (same.conclusion, same.findings[0].decision) == ("stop", "no_effect")


@pytest.mark.parametrize(
    ("primary", "slower", "wanted"),
    [(DECLARATION["primary"], 1.03, 0.0), (NO_WORSE, 1.08, -0.05)],
    ids=["superior", "not_inferior"],
)
def test_a_sure_loss_is_one_however_little_it_is(primary: dict[str, Any], slower: float, wanted: float) -> None:
    """It lies beyond what was wanted, by less than another margin."""
    (found,) = verdict(experiment(primary=primary), made(1000, faster=slower)).findings
    assert found.gain is not None
    assert wanted - 0.05 < found.gain.low < found.gain.high < wanted
    assert found.decision == "control_better"


def test_no_worse_ships_only_where_that_was_the_goal() -> None:
    judged = verdict(experiment(primary=NO_WORSE), made(3000, faster=1.01))
    assert (judged.conclusion, judged.arm) == ("ship_not_inferior", "cheaper")
    assert "by the margin of 0.05" in judged.reason
    assert verdict(experiment(primary=NO_WORSE), made(3000, faster=1.2)).conclusion == "stop"


def test_a_gain_that_is_not_sure_is_called_no_worse_and_a_sure_one_a_gain() -> None:
    unsure, sure = (verdict(experiment(primary=NO_WORSE), made(1000, faster=faster)) for faster in (0.999, 0.9))
    gain = unsure.findings[0].gain
    assert gain is not None
    assert gain.low < 0 < gain.estimate
    assert (unsure.conclusion, sure.conclusion) == ("ship_not_inferior", "ship")


def test_too_few_units_conclude_nothing() -> None:
    judged = verdict(experiment(minimum_units=500), made(400, faster=0.5))
    assert judged.conclusion == "collecting"
    assert "400 of 500 units" in judged.reason
    assert verdict(experiment(), []).conclusion == "collecting"


def test_a_sample_ratio_mismatch_blocks_even_a_clear_gain() -> None:
    lost = [
        event
        for event in made(400, faster=0.5)
        if not (isinstance(event, OutcomeEvent) and int(event.unit or "0", 16) % 6 == 1)
    ]
    judged = verdict(experiment(), lost)
    assert (judged.conclusion, judged.arm) == ("sample_ratio_mismatch", None)
    assert verdict(experiment(arms=[DECLARATION["arms"][0] | {"weight": 3}, DECLARATION["arms"][1] | {"weight": 2}]),
                   lost).conclusion != "sample_ratio_mismatch"  # fmt: skip


@pytest.mark.parametrize(("weights", "units"), [((1, 1), 10), ((3, 1), 20), ((1, 3), 20)], ids=["1:1", "3:1", "1:3"])
def test_the_sample_ratio_is_tested_once_every_arm_expects_five_units(weights: tuple[int, int], units: int) -> None:
    arms = [arm | {"weight": weight} for arm, weight in zip(DECLARATION["arms"], weights, strict=True)]
    one, recorded = experiment(arms=arms), [outcome(i, "control", i) for i in range(units)]
    assert judge.mismatch(one, summarise(one, recorded[:-1])) is None
    assert judge.mismatch(one, summarise(one, recorded)) is not None


def test_a_gain_waits_for_its_guardrails_and_harm_stops_it() -> None:
    one = experiment(guardrails=GUARDED)

    def failing(arm: str, request: int) -> dict[str, Any]:
        return {"outcome": "engine_failed"} if arm == "cheaper" and request % 8 == 2 else {}

    broken = verdict(one, made(1000, faster=0.8, change=failing))
    assert (broken.conclusion, broken.findings[0].decision) == ("stop", "harm")
    waiting = verdict(one, made(200, faster=0.8))
    assert waiting.conclusion == "collecting"
    assert "not yet surely within errors" in waiting.reason
    assert verdict(one, made(3000, faster=0.8)).conclusion == "ship"


def test_less_psnr_than_a_guardrail_allows_is_harm_and_more_is_none() -> None:
    one = experiment(guardrails=[{"metric": "psnr", "compare": "difference", "limit": 3.0}])
    less, more = verdict(one, learned("psnr", 30.0, 22.0)), verdict(one, learned("psnr", 22.0, 30.0))
    assert less.findings[0].decision == "harm"
    assert more.findings[0].decision == "no_effect", "of the seconds, which are the same"


@pytest.mark.parametrize(
    ("guardrail", "tau"),
    [
        ({"metric": "errors", "compare": "difference", "limit": 0.2}, 0.2),
        ({"metric": "macs", "compare": "ratio", "limit": 1.3}, 0.3),
        ({"metric": "macs", "compare": "value", "limit": 7.0}, RESOLUTION["macs"]),
    ],
    ids=["difference", "ratio", "value"],
)
def test_an_interval_is_tightest_about_its_guardrails_limit(guardrail: dict[str, Any], tau: float) -> None:
    one = experiment(guardrails=[guardrail])
    assert resolution(one, guardrail["metric"]) == pytest.approx(tau)
    assert resolution(one, "psnr") == RESOLUTION["psnr"], "of which it says nothing"
    assert resolution(one, "service_seconds") == one.primary.minimal_effect


def test_it_ends_without_a_decision() -> None:
    late = verdict(experiment(), made(210, cv=1.0), AFTER_ALL)
    full = verdict(experiment(maximum_units=205), made(210, cv=1.0))
    assert (late.conclusion, full.conclusion) == ("undecided", "undecided")
    assert "its time is over" in late.reason
    assert "maximum of 205 units" in full.reason


@pytest.mark.parametrize("best", ["cheaper", "cheapest"])
def test_of_two_good_arms_the_better_one_ships(best: str) -> None:
    arms = [*DECLARATION["arms"], {"name": "cheapest", "digest": "2" * 64, "weight": 1}]
    one, dice = experiment(arms=arms), np.random.default_rng(0)
    speeds = {"control": 1.0, "cheaper": 0.9, "cheapest": 0.9} | {best: 0.8}
    recorded: list[Event] = [
        outcome(i, name, i, service_seconds=speeds[name] * dice.lognormal(0, 0.1))
        for i, name in enumerate(name for _ in range(500) for name in speeds)
    ]
    assert verdict(one, recorded).arm == best


def test_several_arms_share_alpha() -> None:
    """Each comparison of k treatments takes α/k, so that the chance that any of them errs is α."""
    arms = [*DECLARATION["arms"], {"name": "cheapest", "digest": "2" * 64, "weight": 1}]
    one, recorded = experiment(arms=arms), made(400)
    control, cheaper, _ = summarise(one, recorded)
    was, now = control.moments["service_seconds"], cheaper.moments["service_seconds"]
    plain = statistics.ratio(was, now, 0.05, one.alpha / 2)
    interval = compare(one, "service_seconds", control, cheaper).ratio
    assert interval is not None
    assert (interval.low, interval.high) == (plain.low, plain.high)
    assert interval.low < statistics.ratio(was, now, 0.05, one.alpha).low


def test_who_gave_up_is_counted_apart_from_errors_and_times() -> None:
    def leaving(arm: str, request: int) -> dict[str, Any]:
        return {"outcome": "client_gone"} if arm == "cheaper" and request % 4 == 2 else {}

    control, cheaper = summarise(experiment(), made(400, change=leaving))
    shares = [float(arm.moments["abandoned"].s / arm.moments["abandoned"].n) for arm in (control, cheaper)]
    assert shares == [0.0, 0.5]
    assert float(cheaper.moments["errors"].s) == 0
    assert float(cheaper.moments["errors"].n) == float(cheaper.moments["service_seconds"].n) == 400
    guarded = experiment(guardrails=[{"metric": "abandoned", "compare": "difference", "limit": 0.05}])
    assert verdict(guarded, made(400, faster=0.8, change=leaving)).findings[0].decision == "harm"


def test_the_report_says_the_same_to_people_and_scripts() -> None:
    one = experiment()
    summaries: list[ArmSummary] = summarise(one, made(400, faster=0.9))
    page = report.report(one, summaries, LATER)
    plain = json.loads(json.dumps(report.as_json(page), allow_nan=False))
    screen = io.StringIO()
    Console(file=screen, width=160).print(report.as_tables(page))
    assert plain["verdict"]["reason"] in screen.getvalue()
    (service,) = [comparison for comparison in plain["comparisons"] if comparison["metric"] == "service_seconds"]
    assert service["ratio"]["low"] < 0.9 < service["ratio"]["high"]
    assert f"{service['ratio']['low']:.3f}" in screen.getvalue()
    assert [metric["ratio"] for metric in plain["comparisons"] if metric["metric"] == "rating"] == [None]
