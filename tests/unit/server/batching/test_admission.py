"""Admission and forecast: bounded seconds of work, and a time that grows with what stands before a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from server_model import small_model
from typing_extensions import override

from registry.catalog import Catalog
from registry.errors import Overloaded
from registry.schedule import Schedule, Segment
from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.batching.admission import Admission
from server.batching.forecast import EngineLoad, InflightImage
from server.experiments.active import ActiveExperiments
from server.requests.planner import Planner
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

WORK = st.integers(min_value=1, max_value=100)


@given(st.lists(st.tuples(st.sampled_from("abc"), WORK)))
def test_no_more_than_the_bounds_is_accepted(arrivals):
    """At one second a MAC; only somebody whose own queue, or the whole one, is empty may pass a bound."""
    admission, accepted = Admission(max_seconds=200, max_key_seconds=80, pace=1.0), {}
    for key, macs in arrivals:
        own, whole = accepted.get(key, 0), sum(accepted.values())
        fits = (not own or own + macs <= 80) and (not whole or whole + macs <= 200)
        if fits:
            admission.enter(key, macs)
            accepted[key] = own + macs
            continue
        with pytest.raises(Overloaded) as refused:
            admission.enter(key, macs)
        assert 1 <= refused.value.retry_after <= max(1, whole)
    assert admission.seconds == sum(accepted.values())
    for key, macs in accepted.items():
        admission.done(key, macs)
    assert admission.seconds == 0


def test_a_keys_own_bound_comes_before_the_general_one():
    admission = Admission(max_seconds=100, max_key_seconds=10, pace=1.0)
    admission.enter("big", 5, key_seconds=50)
    admission.enter("big", 40, key_seconds=50)
    with pytest.raises(Overloaded, match="your queue"):
        admission.enter("big", 10, key_seconds=50)
    admission.enter("small", 5)
    with pytest.raises(Overloaded, match="your queue"):
        admission.enter("small", 6)


def test_the_waiting_time_is_what_must_go_before_it_fits():
    admission = Admission(max_seconds=100)
    for _ in range(3):
        admission.measured(macs=100, seconds=2.0)
    admission.enter("a", 4000)  # 80 s
    with pytest.raises(Overloaded) as refused:
        admission.enter("b", 2000)
    assert refused.value.retry_after == pytest.approx(20)


class Late(Counter):
    """Other threads come in between what is read and what is written then."""

    @override
    def __getitem__(self, key):
        value = super().__getitem__(key)
        sleep(0.0005)
        return value


def with_threads(work):
    """What comes of each of a hundred calls in sixteen threads."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(work, range(100)))


def test_threads_together_enter_no_more_than_the_bound_and_all_that_is_done_is_forgotten():
    admission = Admission(max_seconds=60, pace=1.0)
    admission._macs[False] = Late()

    def enter(_):
        try:
            admission.enter("anna", 1)
        except Overloaded:
            return 0
        return 1

    assert sum(with_threads(enter)) == admission.seconds == 60
    with_threads(lambda _: admission.add("bert", 1))
    assert admission.seconds == 160
    with_threads(lambda _: admission.done("bert", 1))
    assert admission.seconds == 60


@dataclass
class Inflight(InflightImage):
    step_macs: int
    left: int

    @override
    def next_macs(self, steps: int) -> int:
        return self.step_macs * min(steps, self.left)


def test_nobody_before_it_leaves_its_own_work():
    assert EngineLoad({}, [], 0.5, 0.25).finish("fast", 4, 40, 2, alone=3.0) == 20 + 0.5
    assert EngineLoad({}, [], 0.5, 0.25).finish("fast", 4, 40, 2, alone=30.0) == 30 + 0.5


def test_a_cheap_request_waits_for_a_flood_of_dear_ones_only_as_long_as_for_its_like():
    """The fair queue shares MACs between tiers."""
    load = EngineLoad({"reference": 10_000, "fast": 20}, [], 1.0, 0.0)
    assert load.finish("fast", 4, 40, 1, alone=0.0) == 2 * (20 + 40)
    assert load.finish("reference", 50, 500, 1, alone=0.0) == 10_500 + 20


def test_images_in_flight_count_for_the_steps_they_share():
    load = EngineLoad({}, [Inflight(10, 50), Inflight(10, 2)], 1.0, 0.0)
    assert load.finish("fast", 4, 40, 1, alone=0.0) == 40 + 40 + 20


TIERS = {"draft": 1, "balanced": 2, "best": 4}  # segments of a teacher of 4 steps: the cost


@pytest.fixture
def planner(tiny):
    """Predicts a second for each full step."""
    model, store = small_model(tiny), MemoryStore()
    catalog = Catalog(store, model.ref.name, author="test")
    for tier, segments in TIERS.items():
        schedule = Schedule(model=model.ref, solver=model.solver("dpmsolver++", 4), segments=(Segment(),) * segments)
        catalog.publish(schedule)
        catalog.promote(tier, schedule.digest)
    schedules = ActiveSchedules(lambda: catalog, model, 4)
    Watch(schedules, lambda: catalog).refresh()

    class Settings:
        request_seconds, default_tier, default_guidance = 60.0, "balanced", 3.0

    experiments = ActiveExperiments(lambda: None, schedules)
    return Planner(
        schedules, experiments, model, lambda program, unet_rows, images, *_: images * len(program.steps), Settings()
    )


@pytest.mark.parametrize(
    ("deadline_ms", "images", "tier"),
    [
        (None, 1, "balanced"),
        (9000, 1, "best"),
        (4000, 1, "best"),
        (3999, 1, "balanced"),
        (4000, 2, "balanced"),
        (1500, 1, "draft"),
        (100, 1, "draft"),
    ],
)
def test_auto_is_the_best_tier_that_should_keep_the_deadline(planner, deadline_ms, images, tier):
    request = GenerateRequest(prompt="x", tier="auto", deadline_ms=deadline_ms, num_images=images)
    plan = asyncio.run(planner.plan(request, "id", ANONYMOUS))
    assert plan.entry.tier == tier
    assert plan.predicted == images * TIERS[tier]
    assert planner.limit(request) == (60 if deadline_ms is None else deadline_ms / 1000)
