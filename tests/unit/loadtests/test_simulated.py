"""The simulated card takes the time that was measured on the real one, and its lanes share it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from engine.condition import Condition
from loadtests import simulated_device
from loadtests.card import FULL, CallCost
from loadtests.h100 import CAPTURED, CARDS, COMPILED, EAGER
from loadtests.simulated import SimulatedGraphs, label, simulated
from loadtests.simulated_device import SimulatedDevice

TEN = CallCost({1: 10_000.0})  # seconds, so that sums of them are exact


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(simulated_device.time, "sleep", clock.sleep)
    monkeypatch.setattr(simulated_device, "be_busy", clock.sleep)
    return clock


def test_the_curves_are_what_was_measured_within_a_tenth():
    """Both the points, and the formulas that the measurement was summed up in."""
    measured = {
        ("eager", FULL): {1: 23.8, 2: 24.4, 4: 24.4, 8: 30.2, 16: 52.6, 32: 100.2},
        ("eager", 1): {1: 1.70, 2: 1.73, 4: 1.81, 8: 3.05, 16: 5.80, 32: 11.2},
        ("eager", 3): {1: 6.8, 2: 7.1, 4: 7.9, 8: 13.6, 16: 26.3, 32: 51.2},
        ("captured", FULL): {1: 9.6, 2: 12.3, 4: 17.3, 8: 28.4, 16: 51.9},
        ("captured", 1): {1: 0.65, 2: 0.97, 4: 1.57, 8: 2.91, 16: 5.60},
        ("captured", 3): {1: 2.7, 2: 4.1, 4: 7.0, 8: 13.2, 16: 25.7},
    }
    for (name, branch), points in measured.items():
        for rows, milliseconds in points.items():
            assert 1000 * CARDS[name].calls[branch].seconds(rows) == pytest.approx(milliseconds, rel=0.1)
    for rows in range(1, 33):
        assert 1000 * EAGER.calls[FULL].seconds(rows) == pytest.approx(max(24, 3.1 * rows + 3), rel=0.1)
        assert 1000 * CAPTURED.calls[FULL].seconds(rows) == pytest.approx(6.5 + 2.9 * rows, rel=0.1)
    for images in (1, 8):
        assert 1000 * CAPTURED.decoding.seconds(images) == pytest.approx({1: 22, 8: 122}[images], rel=0.1)
    assert 1000 * COMPILED.calls[FULL].seconds(2) == pytest.approx(6.64)


@pytest.mark.parametrize("branch", [2, 4])
def test_branches_between_those_measured_by_rows_lie_between_them(branch):
    for card in CARDS.values():
        for rows in (1, 2, 8, 16, 32):
            deeper = card.calls[3 if branch == 2 else FULL].seconds(rows)
            assert card.calls[branch - 1].seconds(rows) < card.calls[branch].seconds(rows) < deeper


def test_a_branch_that_was_not_measured_costs_its_share_of_a_full_step():
    assert EAGER.call(9, 0.8).seconds(8) == pytest.approx(0.8 * EAGER.calls[FULL].seconds(8))
    assert EAGER.call(9, 0.8).host_seconds == pytest.approx(0.8 * 0.024)
    assert EAGER.call(3, 0.8) is EAGER.calls[3]


def test_the_label_says_what_was_measured_where_and_when():
    for name in CARDS:
        assert "SIMULATION" in label(name)
        assert "H100" in label(name)
        assert "2026-11-28" in label(name)
    assert label("eager") != label("captured")


def test_a_device_works_behind_the_host_one_call_after_the_other(clock):
    device = SimulatedDevice(clock)
    device.call(TEN, 1)
    first = device.fence()
    device.call(TEN, 1)
    second = device.fence()
    assert clock.now == 0
    assert not first.done()
    clock.now = 10.5
    assert first.done()
    assert not second.done()
    second.wait()
    assert clock.now == pytest.approx(20, abs=0.01)
    assert second.since(first) == pytest.approx(10)


def test_an_idle_device_begins_when_it_is_asked(clock):
    device = SimulatedDevice(clock)
    clock.now = 7.0
    before = device.fence()
    assert before.done()
    device.call(TEN, 1)
    after = device.fence()
    after.wait()
    assert after.since(before) == pytest.approx(10)


def test_lanes_share_the_device_and_save_no_work(clock):
    """A short call beside a long one takes twice its time, and the long one is later by all of it."""
    device = SimulatedDevice(clock)
    begin, lane = device.fence(), device.new_lane()
    device.call(CallCost({1: 50_000.0}), 1)
    long = device.fence()
    with lane.after(begin):
        device.call(TEN, 1)
    short = lane.fence()
    short.wait()
    assert not long.done()
    long.wait()
    assert short.since(begin) == pytest.approx(20)
    assert long.since(begin) == pytest.approx(60)


def test_a_lane_waits_for_the_fence_and_nobody_waits_for_the_lane(clock):
    device = SimulatedDevice(clock)
    begin, lane = device.fence(), device.new_lane()
    device.call(TEN, 1)
    wave = device.fence()
    with lane.after(wave):
        device.call(TEN, 1)
    decoded = lane.fence()
    device.call(TEN, 1)
    following = device.fence()
    for fence in (wave, decoded, following):
        fence.wait()
    assert wave.since(begin) == pytest.approx(10)
    assert following.since(begin) == pytest.approx(30)
    assert decoded.since(begin) == pytest.approx(30)


def test_an_eager_call_keeps_the_host_busy_and_ends_no_sooner_than_it_is_asked_for(clock):
    device = SimulatedDevice(clock)
    begin = device.fence()
    device.call(CallCost({1: 12_000.0}, host=24_000.0), 1)
    assert clock.now == 24
    device.call(CallCost({1: 100_000.0}, host=24_000.0), 1)
    assert clock.now == 48
    end = device.fence()
    end.wait()
    assert end.since(begin) == pytest.approx(124)


def test_being_busy_takes_the_time():
    """At least: nobody can promise less on a shared machine."""
    before = simulated_device.time.monotonic()
    simulated_device.be_busy(0.01)
    assert simulated_device.time.monotonic() - before >= 0.01


def test_a_simulated_model_takes_the_cards_time_for_every_kind_of_call(clock, model):
    twin, rows = simulated(model), 4
    network, decoder = twin.network, twin.decoder
    network.simulated_device = device = SimulatedDevice(clock)
    decoder = replace(decoder, device=device)
    sample, condition = torch.zeros(rows, *model.latent_shape), Condition()
    feature = torch.zeros(rows, *model.macs.features[3])
    fences = [network.fence()]
    for call in (
        lambda: network.full(sample, sample, condition),
        lambda: network.partial(sample, sample, condition, 3, feature),
    ):
        call()
        fences.append(network.fence())
        SimulatedGraphs().capture(call).replay()
        fences.append(network.fence())
    lane = network.lane()
    with lane.after(fences[-1]):
        images = decoder(sample)
    fences.append(lane.fence())
    for fence in fences:
        fence.wait()
    took = [1000 * fence.since(before) for before, fence in pairwise(fences)]
    assert took == pytest.approx([24.0, 17.3, 7.9, 7.0, 22 + 3 * 100 / 7])
    assert images.shape == (rows, 3, *model.image_size)
