"""The planner's virtual servers do what the real engine does on the simulated card, and its clusters what arithmetic says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import pytest
from server_model import small_model
from typer.testing import CliRunner

from engine.program_step import Need
from loadtests import simulated_device
from loadtests.capacity.__main__ import app
from loadtests.capacity.cluster import BALANCERS, Load, Outcome, simulate
from loadtests.capacity.curves import Curves, read_curves
from loadtests.capacity.gpu import ServerSettings
from loadtests.capacity.images import TierPlan
from loadtests.capacity.plan import Promise, plan
from loadtests.card import FULL, CallCost, Card
from loadtests.h100 import CAPTURED
from loadtests.simulated import SimulatedDecoder, SimulatedGraphs, simulated
from loadtests.simulated_device import SimulatedDevice
from registry.errors import FlexiError, InvalidInput, NotFound
from registry.schedule import Schedule, Segment
from server.batching import fair_queue, overlap, warm_up
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine

SEGMENTS = {
    "draft": [Segment(partial=(3,), branch=1)] * 3,
    "balanced": [Segment(partial=(1, 3), branch=2)] * 5,
    "reference": [Segment()] * 25,
}
MIX = {"draft": 6, "balanced": 3, "reference": 1}


class VirtualClock:
    """Moved by whoever sleeps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.0)


@pytest.fixture
def clock(monkeypatch) -> VirtualClock:
    """The clock of everything between a request and its pixels."""
    clock = VirtualClock()
    for name, module in list(sys.modules.items()):
        if name.startswith("server.batching.") and hasattr(module, "monotonic"):
            monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(overlap, "sleep", clock.sleep)
    monkeypatch.setattr(fair_queue.FairQueue.__init__, "__defaults__", (None, clock))
    for module in (simulated_device, warm_up):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=clock.sleep, monotonic=clock))
    monkeypatch.setattr("loadtests.simulated.be_busy", clock.sleep)
    monkeypatch.setattr(simulated_device, "be_busy", clock.sleep)
    return clock


def schedules(model) -> dict[str, Schedule]:
    return {
        tier: Schedule(model=model.ref, solver=model.solver("ddim", sum(map(len_of, segments))), segments=tuple(segments))
        for tier, segments in SEGMENTS.items()
    }


def plans(model) -> dict[str, TierPlan]:
    macs = {FULL: float(model.macs.full.macs)} | {branch: float(one.macs) for branch, one in model.macs.partial.items()}
    return {tier: TierPlan.of(tier, schedule, macs) for tier, schedule in schedules(model).items()}


def len_of(segment: Segment) -> int:
    return 1 + max(segment.partial, default=0)


def really(model, clock: VirtualClock, load: Load, settings: ServerSettings) -> Outcome:
    """The same load on the server's own engine, whose card only takes the virtual clock's time."""
    model = simulated(model)
    device = SimulatedDevice(clock)
    model.network.simulated_device = device
    model = replace(model, decoder=SimulatedDecoder(model.decoder.scale, device))
    rows = settings.max_wave_rows
    engine = ModelEngine(model, Admission(settings.max_queue_seconds), max_wave_rows=rows, graphs=SimulatedGraphs())
    programs = {tier: model.compile(schedule) for tier, schedule in schedules(model).items()}
    engine.warm_up(list(schedules(model).values()))
    outcome, begin, at_work, waiting = Outcome(), clock.now, None, list[tuple[str, float, object]]()
    arrivals = [(begin + born, tier) for born, tier in load.arrivals()]
    while arrivals or waiting:
        while arrivals and arrivals[0][0] <= clock.now:
            born, tier = arrivals.pop(0)
            try:
                (future,) = engine.submit([ImageSpec(programs[tier], "a", "", 2.0, seed=1, tier=tier)])
            except FlexiError:
                outcome.refused[tier] += 1
            else:
                waiting.append((tier, born, future))
        before = clock.now
        at_work = engine.step(at_work)
        for tier, born, future in [one for one in waiting if one[2].done()]:
            assert future.result() is not None
            outcome.latencies[tier].append(clock.now - born)
        waiting = [one for one in waiting if not one[2].done()]
        if clock.now == before and at_work is None:  # nothing is in the waves: the decoder is at work, or nobody is there
            clock.sleep(0.001 if waiting else arrivals[0][0] - clock.now if arrivals else 0.0)
    outcome.end = clock.now - begin
    return outcome


@pytest.mark.parametrize(("rate", "requests"), [(5.0, 120), (10.0, 200), (40.0, 300)])
def test_a_virtual_server_answers_as_the_real_engine_on_the_simulated_card(tiny, clock, rate: float, requests: int) -> None:
    """By ten per cent: under a light load, under a heavy one, and under one that is more than it can bear, where both refuse.

    Which tier waits longest then depends on small differences in who came in first, so only the sums are held.
    """
    model, load, settings = small_model(tiny), Load(rate, MIX, requests), ServerSettings(max_queue_seconds=2)
    got = simulate(CAPTURED, plans(model), load, 1, settings=settings)
    want = really(model, clock, load, settings)
    assert sum(map(len, got.latencies.values())) + sum(got.refused.values()) == requests
    assert got.refused_share == pytest.approx(want.refused_share, abs=0.05)
    assert (got.refused_share > 0.1) == (rate == 40)
    assert got.end == pytest.approx(want.end, rel=0.1)
    every, real = ([seconds for tier in one.latencies.values() for seconds in tier] for one in (got, want))
    assert mean(every) == pytest.approx(mean(real), rel=0.1)
    if rate < 40:
        for tier in MIX:
            assert got.quantile(0.5, tier) == pytest.approx(want.quantile(0.5, tier), rel=0.15), tier


CARD = Card("10 ms a call and 1 ms a row", {FULL: CallCost({1: 11.0, 16: 26.0})}, CallCost({1: 5.0}))
ALIKE = {"only": TierPlan("only", (Need("full", 0),) * 10, tuple(range(0, 22, 2)))}


def on(gpus: int, rate: float, requests: int = 600, **options) -> Outcome:
    return simulate(CARD, ALIKE, Load(rate, {"only": 1.0}, requests), gpus, **options)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_every_request_is_answered_or_refused_whatever_the_balancer(balancer) -> None:
    for rate in (5.0, 500.0):
        outcome = on(3, rate, balancer=balancer, settings=ServerSettings(max_queue_seconds=1))
        assert len(outcome.latencies["only"]) + outcome.refused["only"] == 600
        assert (outcome.refused["only"] > 0) == (rate == 500)
        assert 0 < outcome.busy <= 1
    assert outcome.rows_a_wave > 12, "under more than they bear, waves are full"


def test_one_request_alone_takes_what_its_calls_take() -> None:
    outcome = on(1, rate=0.01, requests=20)
    assert outcome.latencies["only"] == pytest.approx([10 * 0.012 + 0.005] * 20)
    assert ALIKE["only"].alone_seconds(CARD) == pytest.approx(outcome.latencies["only"][0])


def test_whoever_sees_the_queues_keeps_them_shorter_than_who_guesses() -> None:
    seconds = {balancer: on(4, 60.0, 2000, balancer=balancer).quantile(0.95) for balancer in BALANCERS}
    assert seconds["least-queue"] < seconds["two-choices"] < seconds["random"]
    stale = on(4, 60.0, 2000, balancer="least-queue", seen=2.0).quantile(0.95)
    assert stale > seconds["least-queue"], "what is two seconds old sends everybody to the same server"


def test_the_fewest_gpus_keep_the_promise_and_one_less_do_not() -> None:
    promise = Promise(p95=0.35)
    found = plan(lambda gpus: on(gpus, 120.0, 1000), promise, 1, 64)
    assert found.needed is not None
    assert promise.kept(on(found.needed, 120.0, 1000))
    assert not promise.kept(on(found.needed - 1, 120.0, 1000))
    assert plan(lambda gpus: on(gpus, 120.0, 200), Promise(p95=0.01), 1, 4).needed is None


def test_curves_come_back_from_their_file_and_damage_is_named(tmp_path) -> None:
    file = tmp_path / "curve.json"
    Curves(CARD, {FULL: 2.0, 3: 0.5}).write(file)
    assert read_curves(str(file)) == Curves(CARD, {FULL: 2.0, 3: 0.5})
    said = json.loads(file.read_text())
    for change, why in (
        ({"calls": {"full": {"1": -3}}}, "calls.full.1"),
        ({"calls": {"deep": {"1": 3}}}, "`full` or the number of a branch"),
        ({"calls": {}}, "says nothing of full steps"),
        ({"colour": 1}, "colour"),
    ):
        file.write_text(json.dumps(said | change))
        with pytest.raises(InvalidInput) as refused:
            read_curves(str(file))
        assert why in f"{refused.value.param}: {refused.value.text}"
    with pytest.raises(NotFound, match="captured"):
        read_curves(str(tmp_path / "none.json"))


def test_the_command_prints_the_need_and_what_a_cheaper_tier_saves(tmp_path) -> None:
    asked = ["--rate", "12", "--requests", "300", "--gpus", "1..8", "--p95", "3", "--instead", "balanced=draft"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "plot.png")])
    assert done.exit_code == 0, done.stderr
    assert "SIMULATION" in done.stdout
    assert done.stdout.count("GPUs keep it") == 2
    assert "saves" in done.stdout
    assert (tmp_path / "plot.png").stat().st_size > 1000
    for option, text in (
        ("--mix", "draft"),
        ("--mix", "none:1"),
        ("--gpus", "0..3"),
        ("--instead", "a=b"),
        ("--p95", "0.1"),
        ("--model", "x"),
    ):
        refused = CliRunner().invoke(app, [*asked, option, text])
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"error: {option[2:]}: ")
