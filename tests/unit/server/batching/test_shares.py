"""MACs are shared between tiers, and deadlines go first on credit only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_engine import CPU, GPU, MIX, TIERS, Device, Image, balanced, flood, simulate, traffic

from server.batching.fair_queue import FairQueue
from server.batching.shares import TierShares


@dataclass(eq=False)
class Queued(Image):
    """An image of 100 MACs that a real queue holds."""

    spec: SimpleNamespace = field(kw_only=True)
    remaining_macs: int = 100


def test_shares_let_in_who_can_still_make_it() -> None:
    """Overload, where first come first served is late for nearly everybody."""
    plain = simulate(balanced(), GPU, traffic(44, MIX, deadlines=True))
    policy = balanced()
    better = simulate(policy, GPU, traffic(44, MIX, deadlines=True), shares=TierShares(policy))
    assert better.missed <= 0.6 * plain.missed


@pytest.mark.parametrize(("device", "rate"), [(CPU, 40), (GPU, 150)])
def test_a_flood_of_deadlines_keeps_nobody_out(device: Device, rate: float) -> None:
    """Twice the drafts that the device can make, for 15 s; the others have no deadline and come when it is full."""
    policy = balanced(16)
    dear = sum(device.seconds(need, 16) for need in TIERS["draft"])
    outcome = simulate(
        policy, device, flood(rate, dear, Image("reference", 1.0), Image("draft", 2.0), seconds=15), shares=TierShares(policy)
    )
    assert outcome.missed > 100, "the flood fills the device"
    assert max(outcome.latencies["reference"]) <= 8, "of 15 and more when deadlines always went first"
    assert policy.patience <= outcome.worst_wait <= 2 * policy.patience + 2


def test_a_flood_of_one_tier_does_not_delay_another() -> None:
    """100 images of the teacher wait; drafts that come after them go in at once, until they had as many MACs."""
    shares = TierShares(balanced())
    waiting = [Image("reference", 0.0) for _ in range(100)]
    for _ in range(5):
        choice = shares.next(waiting, 0.0)
        waiting.remove(choice.task)
        shares.charge(choice, 50)
    waiting += [Image("draft", 1.0) for _ in range(100)]
    order = []
    for _ in range(60):
        choice = shares.next(waiting, 1.0)
        waiting.remove(choice.task)
        order.append(choice.task.tier)
        shares.charge(choice, 50 if choice.task.tier == "reference" else 3)
    spent = {"reference": 50 * order.count("reference"), "draft": 3 * order.count("draft")}
    assert order[:2].count("draft") == 1, "it starts where the others are, not behind them"
    assert abs(spent["reference"] - spent["draft"]) <= 50, "within one image"


@given(macs=st.tuples(st.integers(1, 60), st.integers(1, 60)), deadlines=st.lists(st.booleans(), min_size=120, max_size=120))
def test_deadlines_go_first_on_credit(macs: tuple[int, int], deadlines: list[bool]) -> None:
    """Of two tiers, whatever their deadlines and prices, none gets ahead by more than two images of the dearer one."""
    shares, spent = TierShares(balanced()), {"fast": 0, "draft": 0}
    price = dict(zip(spent, macs, strict=True))
    dear = sum(shares.policy.curve.seconds(need, 32) for need in TIERS["draft"])
    waiting = [
        Image(tier, 0.0, 1.5 * dear if dated else math.inf)
        for tier, dated in zip(["fast", "draft"] * 60, deadlines, strict=True)
    ]
    while len({image.tier for image in waiting}) == 2:
        choice = shares.next(waiting, 0.0)
        waiting.remove(choice.task)
        shares.charge(choice, price[choice.task.tier])
        spent[choice.task.tier] += price[choice.task.tier]
        assert abs(spent["fast"] - spent["draft"]) <= 2 * max(macs)


def test_within_a_tier_a_deadline_overtakes_every_other_time() -> None:
    shares = TierShares(balanced())
    plain, dated = ([Image("draft", 0.0, deadline) for _ in range(5)] for deadline in (math.inf, 0.3))
    waiting, order = [*plain, *dated], []
    while waiting:
        shares.next(waiting, 0.0)  # nobody takes it: there was no room
        choice = shares.next(waiting, 0.0)
        waiting.remove(choice.task)
        shares.charge(choice, 3)
        order.append(choice.task in dated)
    assert order == [True, False] * 5


def test_a_tier_that_was_away_has_saved_nothing_up() -> None:
    shares, late = TierShares(balanced()), Image("draft", 9.0)
    for _ in range(10):
        shares.charge(shares.next([Image("best", 0.0)], 0.0), 100)
    shares.next([Image("best", 0.0), late], 9.0)
    assert shares.accounts["draft"] == shares.accounts["best"]


def test_who_has_to_go_back_to_the_queue_is_charged_once() -> None:
    """And background work, which is never charged, gets nothing back."""
    shares = TierShares(balanced())
    queue = FairQueue[Queued](shares)
    client, background = (Queued("fast", 0.0, spec=SimpleNamespace(background=behind, idle=False)) for behind in (False, True))
    queue.put([client])
    for _ in range(3):
        assert queue.take(lambda task: True, 1) == [client]
        assert shares.accounts == {"fast": 100}
        queue.put_back([client])
        assert shares.accounts == {"fast": 0}
    queue.put_back([background])
    assert shares.accounts == {"fast": 0}


def test_equal_tiers_come_in_as_they_came() -> None:
    waiting = [Image("fast", 0.1 * i) for i in range(5)]
    assert TierShares(balanced()).next(waiting, 1.0) == (waiting[0], False)
