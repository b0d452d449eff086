"""Policies simulated with a clock of our own: no UNet, no tensors, and the same numbers on every run."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.curve import CostCurve
from engine.policy import FCFS, Balanced, Policy, fill
from engine.program import Need
from server.batching.fair_queue import FairQueue

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
    """A task without tensors."""

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
    per_row: float

    def seconds(self, need: Need, rows: int) -> float:
        return self.own * max(MACS[need], 0.15) + self.per_row * MACS[need] * rows


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


def flood(rate: float, dear: float, *others: Image, seconds: float = 5.0) -> list[Image]:
    """Drafts with deadlines of 1 to 4 times what they are said to be `dear`, in seconds, beside these others."""
    drafts, rng = traffic(rate, ("draft",), seconds), random.Random(1)
    for image in drafts:
        image.deadline = image.born + rng.uniform(1, 4) * dear
    return sorted([*drafts, *others], key=lambda image: image.born)


def simulate(
    policy: Policy, device: Device, arrivals: Sequence[Image], capacity: int = 64, door: FairQueue | None = None
) -> Outcome:
    """The dispatcher's loop: drop who is late, let in what fits, run a wave, move the clock.

    Without a door, first come first served. Only who has no deadline counts as waiting in `worst_wait`.
    """
    coming, waiting, rows, now, outcome = list(arrivals), list[Image](), list[Image](), 0.0, Outcome()
    while coming or waiting or rows:
        if not waiting and not rows:
            now = max(now, coming[0].born)
        while coming and coming[0].born <= now:
            waiting.append(coming.pop(0))
        outcome.missed += sum(image.deadline <= now for image in (*waiting, *rows))
        waiting, rows = ([image for image in images if image.deadline > now] for images in (waiting, rows))
        while waiting and sum(row.unet_rows for row in rows) + 2 <= capacity:
            image = door.next(waiting, now) if door else waiting[0]
            waiting.remove(image)
            rows.append(image)
            outcome.order.append(image.tier)
            if door:
                door.charge(image.tier, int(1000 * sum(MACS[need] for need in image.ahead)))
        if not rows:
            continue
        chosen = policy.choose(rows, now)
        need, size = chosen[0].need, sum(row.unet_rows for row in chosen)
        seconds = device.seconds(need, size)
        now += seconds
        if isinstance(policy, Balanced):
            policy.curve.observe(need, size, seconds)
        for row in rows:
            row.waits = 0 if row in chosen else row.waits + 1
            if row.deadline == math.inf:
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
        plain, better = (simulate(policy, GPU, traffic(rate, MIX)) for policy in (FCFS(32), balanced()))
        assert better.mean * gain < plain.mean
    assert better.end < plain.end, "where work piles up"


def test_cheap_images_do_not_pay_for_it_at_light_load() -> None:
    plain, better = (simulate(policy, GPU, traffic(10, MIX)) for policy in (FCFS(32), balanced()))
    assert sum(better.latencies["draft"]) <= 1.02 * sum(plain.latencies["draft"])


def test_where_rows_cost_what_they_cost_the_oldest_decides() -> None:
    plain, same = (simulate(policy, CPU, traffic(5, MIX)) for policy in (FCFS(32), balanced()))
    for tier in MIX:
        assert same.latencies[tier] == pytest.approx(plain.latencies[tier])


def test_a_tight_deadline_among_slow_images_is_kept_more_often() -> None:
    """Drafts with 150 ms among images of the teacher."""
    missed = []
    for policy in (FCFS(32), balanced()):
        arrivals = traffic(6, ("reference", "reference", "best", "draft"))
        for image in arrivals:
            image.deadline = image.born + 0.15 if image.tier == "draft" else math.inf
        missed.append(simulate(policy, GPU, arrivals).missed)
    assert missed[1] <= 0.6 * missed[0]


def test_the_door_lets_in_who_can_still_make_it() -> None:
    """Overload, where first come first served is late for nearly everybody."""
    plain = simulate(balanced(), GPU, traffic(44, MIX, deadlines=True))
    policy = balanced()
    better = simulate(policy, GPU, traffic(44, MIX, deadlines=True), door=FairQueue(policy))
    assert better.missed <= 0.6 * plain.missed


def test_a_deadline_makes_waves_smaller_where_that_costs_nothing() -> None:
    """Drafts that take 48 ms alone, with 200 ms, beside images that fill a CPU's waves of 120 ms."""
    missed, ends = [], []
    for policy in (FCFS(16), balanced(16)):
        arrivals = traffic(2.8, ("reference", "best", "draft"))
        for image in arrivals:
            image.deadline = image.born + 0.2 if image.tier == "draft" else math.inf
        outcome = simulate(policy, CPU, arrivals)
        missed.append(outcome.missed)
        ends.append(outcome.end)
    assert missed[1] <= 0.4 * missed[0]
    assert ends[1] == pytest.approx(ends[0], rel=0.01), "no throughput is lost"


def test_an_overloaded_cpu_keeps_more_deadlines() -> None:
    plain, better = (simulate(policy, CPU, traffic(9, MIX, deadlines=True)) for policy in (FCFS(16), balanced(16)))
    assert better.missed <= 0.5 * plain.missed


def taught(device: Device, rows: int) -> Balanced:
    """A policy that has seen waves of all sizes."""
    policy = balanced(rows)
    for need in MACS:
        for size in range(1, rows + 1):
            policy.curve.observe(need, size, device.seconds(need, size))
    return policy


ROWS = st.lists(st.tuples(st.sampled_from(list(TIERS)), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=40)


@given(rows=ROWS, device=st.sampled_from((CPU, GPU)))
def test_without_deadlines_waves_are_full(rows: list[tuple[str, int, int]], device: Device) -> None:
    images = [Image(tier, 0.0, position=position, waits=waits) for tier, position, waits in rows]
    chosen = taught(device, 16).choose(images, 0.0)
    assert len(chosen) == min(8, sum(image.need == chosen[0].need for image in images))


@given(rows=ROWS, deadline=st.floats(0.05, 2.0))
def test_a_wave_leaves_the_most_urgent_its_time(rows: list[tuple[str, int, int]], deadline: float) -> None:
    """On a CPU. It is in the wave, or can still make it alone after it, if anybody but the longest passed over leads."""
    images = [Image(tier, 0.0, position=position, waits=waits) for tier, position, waits in rows]
    urgent, policy = Image("draft", 0.0, deadline), taught(CPU, 16)
    chosen = policy.choose([*images, urgent], 0.0)
    size = sum(image.unet_rows for image in chosen)
    if policy.hurries(urgent, 0.0) and urgent in chosen:
        assert size == 2 or sum(CPU.seconds(need, size) for need in urgent.ahead) <= deadline + 1e-9
    elif policy.hurries(urgent, 0.0):
        alone = sum(CPU.seconds(need, 2) for need in urgent.ahead)
        assert max(image.waits for image in chosen) >= policy.patience
        assert size == 2 or CPU.seconds(chosen[0].need, size) + alone <= deadline + 1e-9


@given(rows=ROWS, deadline=st.floats(0.05, 2.0))
def test_a_gpu_keeps_its_waves_full(rows: list[tuple[str, int, int]], deadline: float) -> None:
    images = [Image(tier, 0.0, position=position, waits=waits) for tier, position, waits in rows]
    images.append(Image("draft", 0.0, deadline))
    chosen = taught(GPU, 16).choose(images, 0.0)
    assert len(chosen) == min(8, sum(image.need == chosen[0].need for image in images))


@settings(max_examples=30, deadline=None)
@given(
    patience=st.integers(1, 9),
    rate=st.sampled_from((20, 60)),
    capacity=st.sampled_from((8, 32, 64)),
    device=st.sampled_from((CPU, GPU)),
    dated=st.sampled_from(((), ("draft",), ("draft", "best"))),
)
def test_nobody_is_passed_over_for_long(patience: int, rate: int, capacity: int, device: Device, dated: Sequence[str]) -> None:
    """A row waits for `patience` waves, twice as many beside deadlines, and then for the others that did, a wave each."""
    policy = Balanced(CostCurve(), 16, patience)
    arrivals = traffic(rate, MIX, seconds=3)
    for image in arrivals:
        image.deadline = image.born + DEADLINES[image.tier] if image.tier in dated else math.inf
    outcome = simulate(policy, device, arrivals, capacity)
    assert outcome.worst_wait <= patience * (2 if dated else 1) + capacity / 2


@pytest.mark.parametrize(("device", "rate"), [(CPU, 40), (GPU, 150)])
def test_a_flood_of_deadlines_keeps_nobody_out(device: Device, rate: float) -> None:
    """Twice the drafts that the device can make, for 15 s; the others have no deadline and come when it is full."""
    policy = balanced(16)
    dear = sum(device.seconds(need, 16) for need in TIERS["draft"])
    outcome = simulate(
        policy, device, flood(rate, dear, Image("reference", 1.0), Image("draft", 2.0), seconds=15), door=FairQueue(policy)
    )
    assert outcome.missed > 100, "the flood fills the device"
    assert max(outcome.latencies["reference"]) <= 8, "of 15 and more when deadlines always went first"
    assert policy.patience <= outcome.worst_wait <= 2 * policy.patience + 2


def by_the_book(policy: Balanced, tasks: Sequence[Image], now: float) -> list[Image]:
    """The oracle of `Balanced.choose`: its decision as it was written first, on overlapping lists, the curve alone assumed."""
    curve, most = policy.curve, policy.max_unet_rows

    def enough(need: Need) -> int:
        return curve.enough(need, policy.tolerance, most)

    def seconds(needs: Sequence[Need], rows: int) -> float:
        return sum(count * curve.seconds(need, rows) for need, count in Counter(needs).items())

    def least(needs: Sequence[Need], rows: int) -> float:
        return sum(count * curve.seconds(need, max(rows, enough(need))) for need, count in Counter(needs).items())

    def hurries(task: Image) -> bool:
        left = task.deadline - now
        return task.deadline < math.inf and least(task.ahead, task.unet_rows) <= left < 2 * seconds(task.ahead, most)

    def seats(first: Image, urgent: Image) -> int:
        left, needs = urgent.deadline - now, urgent.ahead
        if first.need != urgent.need:
            left, needs = left - least(needs, urgent.unet_rows), [first.need]
        size = max(first.unet_rows, enough(first.need))
        while size < most and seconds(needs, size + 1) <= left:
            size += 1
        return size

    def waste(wave: Sequence[Image]) -> float:
        rows = sum(task.unet_rows for task in wave)
        return curve.seconds(wave[0].need, rows) - rows * curve.seconds(wave[0].need, most) / most

    hurried = sorted((task for task in tasks if hurries(task)), key=lambda task: task.deadline)
    passed = [task for task in tasks if task.deadline == math.inf and task.waits >= policy.patience]
    forgotten = [task for task in passed if task.waits >= 2 * policy.patience]
    stale = max(tasks, key=lambda task: task.waits)
    first = [*forgotten, *hurried, *([stale] if stale.waits >= policy.patience else [])][:1]
    groups: dict[Need, list[Image]] = {}
    for task in dict.fromkeys((*first, *passed, *hurried, *tasks)):
        groups.setdefault(task.need, []).append(task)
    if first:
        return fill(groups[first[0].need], seats(first[0], hurried[0]) if hurried else most)
    waves = {need: fill(group, most) for need, group in groups.items()}
    oldest, best = waves[tasks[0].need], min(waves.values(), key=waste)
    gain = waste(oldest) - waste(best)
    return best if gain > policy.tolerance * curve.seconds(oldest[0].need, most) else oldest


TASKS = st.lists(
    st.builds(
        Image,
        tier=st.sampled_from(list(TIERS)),
        born=st.just(0.0),
        deadline=st.just(math.inf) | st.floats(0, 1.5),
        waits=st.integers(0, 12),
        position=st.integers(0, 5),
        unet_rows=st.integers(1, 2),
    ),
    min_size=1,
    max_size=24,
)
OBSERVED = st.lists(st.tuples(st.sampled_from(list(MACS)), st.integers(1, 32), st.floats(1e-4, 0.2)), max_size=12)
DEVICES = st.sampled_from((CPU, GPU)) | st.builds(Device, own=st.floats(0, 0.03), per_row=st.floats(0, 0.01))


@settings(max_examples=500, deadline=None)
@given(
    tasks=TASKS,
    device=st.none() | DEVICES,
    observed=OBSERVED,
    now=st.floats(0, 1),
    max_unet_rows=st.sampled_from((1, 2, 4, 16)),
    patience=st.integers(1, 5),
    tolerance=st.sampled_from((0.0, 0.1, 0.3)),
)
def test_the_choice_is_the_one_of_the_book(
    tasks: list[Image],
    device: Device | None,
    observed: list[tuple[Need, int, float]],
    now: float,
    max_unet_rows: int,
    patience: int,
    tolerance: float,
) -> None:
    """On curves of devices and of arbitrary waves, with and without deadlines, and whoever waited for how long."""
    policy = Balanced(taught(device, 16).curve if device else CostCurve(), max_unet_rows, patience, tolerance)
    for need, size, seconds in observed:
        policy.curve.observe(need, size, seconds)
    assert list(map(id, policy.choose(tasks, now))) == list(map(id, by_the_book(policy, tasks, now)))


@given(rows=st.lists(st.tuples(st.sampled_from(list(TIERS)), st.integers(1, 2), st.integers(0, 5)), min_size=1, max_size=20))
def test_a_wave_is_of_one_kind_fits_and_is_not_empty(rows: list[tuple[str, int, int]]) -> None:
    images = [Image(tier, 0.0, position=position, unet_rows=size) for tier, size, position in rows]
    for policy in (FCFS(4), Balanced(CostCurve(), 4)):
        chosen = policy.choose(images, 0.0)
        assert len({image.need for image in chosen}) == 1
        assert len(chosen) == 1 or sum(image.unet_rows for image in chosen) <= 4
        assert len(set(map(id, chosen))) == len(chosen)


def test_a_flood_of_one_tier_does_not_delay_another() -> None:
    """100 images of the teacher wait; drafts that come after them go in at once, until they had as many MACs."""
    door = FairQueue(balanced())
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


@given(macs=st.tuples(st.integers(1, 60), st.integers(1, 60)), deadlines=st.lists(st.booleans(), min_size=120, max_size=120))
def test_deadlines_go_first_on_credit(macs: tuple[int, int], deadlines: list[bool]) -> None:
    """Of two tiers, whatever their deadlines and prices, none gets ahead by more than two images of the dearer one."""
    door, spent = FairQueue(balanced()), {"fast": 0, "draft": 0}
    price = dict(zip(spent, macs, strict=True))
    dear = sum(door.policy.curve.seconds(need, 32) for need in TIERS["draft"])
    waiting = [
        Image(tier, 0.0, 1.5 * dear if dated else math.inf)
        for tier, dated in zip(["fast", "draft"] * 60, deadlines, strict=True)
    ]
    while len({image.tier for image in waiting}) == 2:
        image = door.next(waiting, 0.0)
        waiting.remove(image)
        door.charge(image.tier, price[image.tier])
        spent[image.tier] += price[image.tier]
        assert abs(spent["fast"] - spent["draft"]) <= 2 * max(macs)


def test_within_a_tier_a_deadline_overtakes_every_other_time() -> None:
    door = FairQueue(balanced())
    plain, dated = ([Image("draft", 0.0, deadline) for _ in range(5)] for deadline in (math.inf, 0.3))
    waiting, order = [*plain, *dated], []
    while waiting:
        door.next(waiting, 0.0)  # nobody takes it: there was no room
        image = door.next(waiting, 0.0)
        waiting.remove(image)
        door.charge(image.tier, 3)
        order.append(image in dated)
    assert order == [True, False] * 5


def test_a_tier_that_was_away_has_saved_nothing_up() -> None:
    door, late = FairQueue(balanced()), Image("draft", 9.0)
    for _ in range(10):
        image = door.next([Image("best", 0.0)], 0.0)
        door.charge(image.tier, 100)
    door.next([Image("best", 0.0), late], 9.0)
    assert door.accounts["draft"] == door.accounts["best"]


def test_equal_tiers_come_in_as_they_came() -> None:
    waiting = [Image("fast", 0.1 * i) for i in range(5)]
    assert FairQueue(balanced()).next(waiting, 1.0) is waiting[0]


@pytest.mark.parametrize("device", [GPU, CPU, Device(0.05, 0.0005)])
def test_the_curve_learns_a_device(device: Device) -> None:
    curve, rng = CostCurve(), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 32)
        curve.observe(FULL, rows, device.seconds(FULL, rows) * rng.uniform(0.95, 1.05))
    own, per_row = curve.fit(FULL)
    assert own == pytest.approx(device.own, abs=0.1 * device.seconds(FULL, 16))
    assert per_row == pytest.approx(device.per_row, rel=0.15)


def test_the_curve_forgets_an_older_device() -> None:
    curve = CostCurve()
    for device in (GPU, CPU):
        for i in range(400):
            curve.observe(FULL, i % 32 + 1, device.seconds(FULL, i % 32 + 1))
    assert curve.seconds(FULL, 16) == pytest.approx(CPU.seconds(FULL, 16), rel=0.01)


@pytest.mark.parametrize(("device", "most"), [(GPU, 32), (CPU, 1), (Device(0.002, 0.005), 4), (Device(0.01, 0.0), 32)])
def test_enough_rows_make_the_call_s_own_cost_small(device: Device, most: int) -> None:
    policy = taught(device, 32)
    assert policy.curve.enough(FULL, 0.1, 32) == most
    assert balanced().curve.enough(FULL, 0.1, 32) == 32, "who knows nothing shrinks nothing"


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
