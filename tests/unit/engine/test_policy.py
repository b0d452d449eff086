"""Policies simulated with a clock of our own: no UNet, no tensors, and the same numbers on every run."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_engine import CPU, DEADLINES, FULL, GPU, MACS, MIX, SHALLOW, TIERS, Device, Image, balanced, simulate, traffic

from engine.buckets import EXACT, Buckets, dense
from engine.curve import CostCurve
from engine.image_size import ImageSize
from engine.policy import FCFS, Balanced, fill
from engine.program_step import Need


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


def taught(device: Device, rows: int, buckets: Buckets = EXACT) -> Balanced:
    """A policy that has seen waves of all sizes; where they are padded, padding takes the device's time too."""
    policy = Balanced(CostCurve(buckets=buckets), rows)
    for need in MACS:
        for size in range(1, rows + 1):
            policy.curve.observe(need, size, device.seconds(need, buckets.padded(size)))
    return policy


ROWS = st.lists(st.tuples(st.sampled_from(list(TIERS)), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=40)


@given(rows=ROWS, device=st.sampled_from((CPU, GPU)))
def test_without_deadlines_waves_are_full(rows: list[tuple[str, int, int]], device: Device) -> None:
    images = [Image(tier, 0.0, position=position, waits=waits) for tier, position, waits in rows]
    chosen = taught(device, 16).choose(images, 0.0)
    assert len(chosen) == min(8, sum(image.need == chosen[0].need for image in images))


@given(count=st.integers(1, 15), device=st.sampled_from((CPU, GPU)))
def test_a_wave_is_padded_where_that_is_cheaper_than_leaving_tasks_for_another(count: int, device: Device) -> None:
    """Images of one row. Rows that cost what they cost are never padded; beside a call's own cost one row more is nothing."""
    policy = taught(device, 16, dense(16))
    images = [Image("best", 0.0, unet_rows=1) for _ in range(count)]
    chosen = policy.choose(images, 0.0)
    assert chosen == images[: len(chosen)]
    if device is CPU:
        assert len(chosen) == max(size for size in policy.curve.buckets.sizes if size <= count)
    else:
        assert len(chosen) == count


@given(rows=ROWS, singles=st.integers(0, 3), device=st.sampled_from((CPU, GPU)))
def test_padding_is_no_reason_to_pass_over_who_waited(rows: list[tuple[str, int, int]], singles: int, device: Device) -> None:
    images = [Image(tier, 0.0, position=position, waits=waits) for tier, position, waits in rows]
    for image in images[:singles]:
        image.unet_rows = 1
    plain, padded = (taught(device, 16, buckets).choose(images, 0.0) for buckets in (EXACT, Buckets((4, 16))))
    overdue = [image for image in plain if image.waits >= 4]
    assert plain[0].need != padded[0].need or set(overdue) <= set(padded)
    assert not overdue or plain[0].need == padded[0].need, "whoever waited longest leads"


def test_buckets_hold_every_size_and_waste_little() -> None:
    for most in (2, 3, 16, 33, 100):
        sizes = dense(most).sizes
        assert sizes[-1] == most
        for rows in range(1, most + 1):
            padded = dense(most).padded(rows)
            assert padded >= rows
            assert padded - rows <= max(1, rows / 8)
    assert EXACT.padded(7) == 7


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


def test_filling_leaves_no_place_empty_that_a_later_task_fits() -> None:
    images = [Image("fast", 0.0, unet_rows=size) for size in (2, 2, 1)]
    assert fill(images, 3) == [images[0], images[2]]
    assert fill(images, 1) == [images[0]], "always one"


def test_a_longer_context_that_never_ran_counts_as_a_short_one_of_its_kind_and_size() -> None:
    curve, size = CostCurve(), ImageSize(64, 96)
    for rows in (1, 4):
        curve.observe(Need("full", 0, size), rows, 0.5 + rows)
    long = Need("full", 0, size, 3)
    assert curve.fit(long) == curve.fit(Need("full", 0, size)) != curve.fit(Need("full", 0, None, 3))
    for rows in (1, 4):
        curve.observe(long, rows, 1 + 2 * rows)
    assert curve.seconds(long, 2) == pytest.approx(5)
