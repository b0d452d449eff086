"""Several workers on a virtual clock: what they do together, by the way requests find them; and how connections are spread."""

from __future__ import annotations

import random

import pytest

from loadtests.capacity.curves import read_curves
from loadtests.capacity.images import TierPlan
from loadtests.connections import at_once, idle_workers, one_by_one
from loadtests.mixes import TIERS, WEIGHTS, mixes
from loadtests.virtual_workers import Flow, Route, fewest_under_way, flow, in_turn, pinned

MIX = dict(zip(TIERS, map(float, WEIGHTS), strict=True))
CLIENTS = 8


@pytest.fixture(scope="module")
def rate():
    """Images a second of so many workers; each number of them and way once."""
    curves, schedules = read_curves("captured"), mixes()["partial"].schedules
    plans = {tier: TierPlan.of(tier, schedule, curves.macs, 2) for tier, schedule in schedules.items()}

    def of(workers: int, route: Route) -> Flow:
        return flow(curves.card, plans, MIX, workers, CLIENTS * workers, route, images=100 * workers)

    return of


def test_workers_that_share_requests_evenly_do_nearly_so_many_times_what_one_does(rate):
    alone, four = (rate(workers, fewest_under_way(random.Random(0))) for workers in (1, 4))
    assert four.rate >= 0.95 * 4 * alone.rate
    assert (80 <= alone.images < 88, 320 <= four.images < 328) == (True, True), "without the warm-up"


def test_connections_that_are_spread_unevenly_leave_workers_idle(rate):
    even, uneven = rate(2, pinned([8, 8])), rate(2, pinned([1, 15]))
    assert uneven.rate < 0.9 * even.rate
    assert max(uneven.latencies) > max(even.latencies)


def test_a_worker_without_connections_does_nothing(rate):
    one, both = rate(2, pinned([0, 16])), rate(2, pinned([8, 8]))
    assert one.rate < 0.7 * both.rate


def test_in_turn_is_each_worker_once():
    route = in_turn()
    assert [route(0, [9, 0, 0]) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_every_connection_is_counted_at_the_worker_that_has_it():
    with idle_workers(2) as address:
        for counts, connections in ((at_once(address, 12), 12), (one_by_one(address, 4), 4)):
            assert 1 <= len(counts) <= 2
            assert sum(counts) == connections
