"""Policies simulated with a clock of our own: no UNet, no tensors, and the same numbers on every run."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.curve import CostCurve
from engine.door import Door
from engine.policy import Balanced, Oldest, Policy, fill
from engine.program import Need

FULL, DEEP, SHALLOW = Need("full", 0), Need("partial", 3), Need("partial", 1)
TIERS = {
    "best": [FULL, DEEP] * 10,
    "balanced": [FULL, DEEP] * 7,
    "fast": [FULL, DEEP] * 4,
    "draft": [FULL, SHALLOW] * 3,
    "reference": [FULL] * 50,
}
MACS = {FULL: 1.0, DEEP: 0.33, SHALLOW: 0.06}  # of a full step
DEADLINES = {"best": 3.0, "balanced": 2.0, "fast": 1.0, "draft": 0.6}


@dataclass(eq=False)
class Image:
    """A row without tensors."""

    tier: str
    born: float
    deadline: float = math.inf
    waits: int = 0
    position: int = 0
    unet_rows: int = 2

    @property
    def ahead(self) -> Sequence[Need]:
        return TIERS[self.tier][self.position :]

    @property
    def need(self) -> Need:
        return self.ahead[0]


@dataclass
class Device:
    """What a wave takes: a cost of the call's own, and one per row. A GPU's call costs much and its rows little."""

    own: float
    each: float

    def seconds(self, need: Need, rows: int) -> float:
        return self.own * max(MACS[need], 0.15) + self.each * MACS[need] * rows


GPU, CPU = Device(0.016, 0.001), Device(0.0, 0.0075)


@dataclass
class Outcome:
    """What happened: latencies in seconds and MACs in full steps, both by tier."""

    end: float = 0.0
    missed: int = 0
    worst_wait: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    order: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        every = [seconds for tier in self.latencies.values() for seconds in tier]
        return sum(every) / len(every)


def traffic(rate: float, tiers: Sequence[str], seconds: float = 30.0, deadlines: bool = False) -> list[Image]:
    """Poisson arrivals of these tiers, `rate` a second."""
    rng, now, images = random.Random(0), 0.0, []
    while (now := now + rng.expovariate(rate)) < seconds:
        tier = rng.choice(tiers)
        images.append(Image(tier, now, now + DEADLINES[tier] if deadlines else math.inf))
    return images


def simulate(
    policy: Policy, device: Device, arrivals: Sequence[Image], capacity: int = 64, door: Door | None = None
) -> Outcome:
    """The dispatcher's loop: let in what fits, run a wave, move the clock. Without a door, first come first served."""
    coming, waiting, rows, now, outcome = list(arrivals), list[Image](), list[Image](), 0.0, Outcome()
    while coming or waiting or rows:
        if not waiting and not rows:
            now = max(now, coming[0].born)
        while coming and coming[0].born <= now:
            waiting.append(coming.pop(0))
        while waiting and sum(row.unet_rows for row in rows) + 2 <= capacity:
            image = door.next(waiting, now) if door else waiting[0]
            waiting.remove(image)
            rows.append(image)
            outcome.order.append(image.tier)
            if door:
                door.charge(image.tier, int(1000 * sum(MACS[need] for need in image.ahead)))
        chosen = policy.choose(rows, now)
        need, size = chosen[0].need, sum(row.unet_rows for row in chosen)
        seconds = device.seconds(need, size)
        now += seconds
        if isinstance(policy, Balanced):
            policy.curve.observe(need, size, seconds)
        for row in rows:
            row.waits = 0 if row in chosen else row.waits + 1
            outcome.worst_wait = max(outcome.worst_wait, row.waits)
        for row in chosen:
            row.position += 1
            if not row.ahead:
                outcome.latencies[row.tier].append(now - row.born)
                outcome.missed += now > row.deadline
        rows = [row for row in rows if row not in chosen] + [row for row in chosen if row.ahead]
    outcome.end = now
    return outcome


MIX = ("best", "balanced", "fast", "draft")


def balanced(rows: int = 32) -> Balanced:
    return Balanced(CostCurve(), rows)


def test_waiting_for_companions_pays_where_a_call_has_its_own_cost() -> None:
    """Near saturation. All work is done sooner, and an image takes less time on average."""
    for rate, gain in ((40, 1.15), (60, 1.03)):
        plain, better = (simulate(policy, GPU, traffic(rate, MIX)) for policy in (Oldest(32), balanced()))
        assert better.mean * gain < plain.mean
    assert better.end < plain.end, "where work piles up"


def test_cheap_images_do_not_pay_for_it_at_light_load() -> None:
    plain, better = (simulate(policy, GPU, traffic(10, MIX)) for policy in (Oldest(32), balanced()))
    assert sum(better.latencies["draft"]) <= 1.02 * sum(plain.latencies["draft"])


def test_where_rows_cost_what_they_cost_the_oldest_decides() -> None:
    plain, same = (simulate(policy, CPU, traffic(5, MIX)) for policy in (Oldest(32), balanced()))
    for tier in MIX:
        assert same.latencies[tier] == pytest.approx(plain.latencies[tier])


def test_a_tight_deadline_among_slow_images_is_kept_more_often() -> None:
    """Drafts with 150 ms among images of the teacher."""
    missed = []
    for policy in (Oldest(32), balanced()):
        arrivals = traffic(6, ("reference", "reference", "best", "draft"))
        for image in arrivals:
            image.deadline = image.born + 0.15 if image.tier == "draft" else math.inf
        missed.append(simulate(policy, GPU, arrivals).missed)
    assert missed[1] <= 0.6 * missed[0]


def test_the_door_lets_in_who_can_still_make_it() -> None:
    """Overload, where first come first served is late for nearly everybody."""
    plain = simulate(balanced(), GPU, traffic(44, MIX, deadlines=True))
    policy = balanced()
    better = simulate(policy, GPU, traffic(44, MIX, deadlines=True), door=Door(policy))
    assert better.missed <= 0.6 * plain.missed


@settings(max_examples=30)
@given(patience=st.integers(1, 9), rate=st.sampled_from((20, 60)), capacity=st.sampled_from((8, 32, 64)))
def test_nobody_is_passed_over_for_long(patience: int, rate: int, capacity: int) -> None:
    """Without deadlines a row waits for `patience` waves, and then for the others that did, a wave of their kind each."""
    policy = Balanced(CostCurve(), 16, patience)
    outcome = simulate(policy, GPU, traffic(rate, MIX, seconds=3), capacity)
    assert outcome.worst_wait <= patience + capacity / 2


@given(rows=st.lists(st.tuples(st.sampled_from(list(TIERS)), st.integers(1, 2), st.integers(0, 5)), min_size=1, max_size=20))
def test_a_wave_is_of_one_kind_fits_and_is_not_empty(rows: list[tuple[str, int, int]]) -> None:
    images = [Image(tier, 0.0, position=position, unet_rows=size) for tier, size, position in rows]
    for policy in (Oldest(4), Balanced(CostCurve(), 4)):
        chosen = policy.choose(images, 0.0)
        assert len({image.need for image in chosen}) == 1
        assert len(chosen) == 1 or sum(image.unet_rows for image in chosen) <= 4
        assert len(set(map(id, chosen))) == len(chosen)


def test_a_flood_of_one_tier_does_not_delay_another() -> None:
    """100 images of the teacher wait; drafts that come after them go in at once, until they had as many MACs."""
    door = Door(balanced())
    waiting = [Image("reference", 0.0) for _ in range(100)]
    for _ in range(5):
        first = door.next(waiting, 0.0)
        waiting.remove(first)
        door.charge(first.tier, 50)
    waiting += [Image("draft", 1.0) for _ in range(100)]
    order = []
    for _ in range(60):
        image = door.next(waiting, 1.0)
        waiting.remove(image)
        order.append(image.tier)
        door.charge(image.tier, 50 if image.tier == "reference" else 3)
    spent = {"reference": 50 * order.count("reference"), "draft": 3 * order.count("draft")}
    assert order[:2].count("draft") == 1, "it starts where the others are, not behind them"
    assert abs(spent["reference"] - spent["draft"]) <= 50, "within one image"


def test_a_tier_that_was_away_has_saved_nothing_up() -> None:
    door, late = Door(balanced()), Image("draft", 9.0)
    for _ in range(10):
        image = door.next([Image("best", 0.0)], 0.0)
        door.charge(image.tier, 100)
    door.next([Image("best", 0.0), late], 9.0)
    assert door.accounts["draft"] == door.accounts["best"]


def test_equal_tiers_come_in_as_they_came() -> None:
    waiting = [Image("fast", 0.1 * i) for i in range(5)]
    assert Door(balanced()).next(waiting, 1.0) is waiting[0]


@pytest.mark.parametrize("device", [GPU, CPU, Device(0.05, 0.0005)])
def test_the_curve_learns_a_device(device: Device) -> None:
    curve, rng = CostCurve(), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 32)
        curve.observe(FULL, rows, device.seconds(FULL, rows) * rng.uniform(0.95, 1.05))
    own, each = curve.fit(FULL)
    assert own == pytest.approx(device.own, abs=0.1 * device.seconds(FULL, 16))
    assert each == pytest.approx(device.each, rel=0.15)


def test_the_curve_forgets_an_older_device() -> None:
    curve = CostCurve()
    for device in (GPU, CPU):
        for i in range(400):
            curve.observe(FULL, i % 32 + 1, device.seconds(FULL, i % 32 + 1))
    assert curve.seconds(FULL, 16) == pytest.approx(CPU.seconds(FULL, 16), rel=0.01)


def test_waves_of_one_size_say_nothing_about_a_cost_of_their_own() -> None:
    curve = CostCurve()
    for _ in range(5):
        curve.observe(FULL, 4, 0.02)
    assert curve.fit(FULL) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.005))
    assert curve.seconds(SHALLOW, 4) > 0, "what never ran is guessed"


def test_filling_leaves_no_place_empty_that_a_later_row_fits() -> None:
    images = [Image("fast", 0.0, unet_rows=size) for size in (2, 2, 1)]
    assert fill(images, 3) == [images[0], images[2]]
    assert fill(images, 1) == [images[0]], "always one"
