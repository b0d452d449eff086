"""An engine simulated with a clock of our own: no UNet, no tensors, and the same numbers on every run."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.curve import CostCurve
from engine.policy import Balanced, Policy
from engine.program_step import Need
from server.batching.shares import Choice, TierShares

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
    policy: Policy, device: Device, arrivals: Sequence[Image], capacity: int = 64, shares: TierShares | None = None
) -> Outcome:
    """The engine thread's loop: drop who is late, let in what fits, run a wave, move the clock.

    Without shares, first come first served. Only who has no deadline counts as waiting in `worst_wait`.
    """
    coming, waiting, inside, now, outcome = list(arrivals), list[Image](), list[Image](), 0.0, Outcome()
    while coming or waiting or inside:
        if not waiting and not inside:
            now = max(now, coming[0].born)
        while coming and coming[0].born <= now:
            waiting.append(coming.pop(0))
        outcome.missed += sum(image.deadline <= now for image in (*waiting, *inside))
        waiting, inside = ([image for image in images if image.deadline > now] for images in (waiting, inside))
        while waiting and sum(image.unet_rows for image in inside) + 2 <= capacity:
            choice = shares.next(waiting, now) if shares else Choice(waiting[0], overtakes=False)
            waiting.remove(choice.task)
            inside.append(choice.task)
            outcome.order.append(choice.task.tier)
            if shares:
                shares.charge(choice, int(1000 * sum(MACS[need] for need in choice.task.ahead)))
        if not inside:
            continue
        chosen = policy.choose(inside, now)
        need, size = chosen[0].need, sum(image.unet_rows for image in chosen)
        seconds = device.seconds(need, size)
        now += seconds
        if isinstance(policy, Balanced):
            policy.curve.observe(need, size, seconds)
        for image in inside:
            image.waits = 0 if image in chosen else image.waits + 1
            if image.deadline == math.inf:
                outcome.worst_wait = max(outcome.worst_wait, image.waits)
        for image in chosen:
            image.position += 1
            if not image.ahead:
                outcome.latencies[image.tier].append(now - image.born)
                outcome.missed += now > image.deadline
        inside = [image for image in inside if image not in chosen] + [image for image in chosen if image.ahead]
    outcome.end = now
    return outcome


MIX = ("best", "balanced", "fast", "draft")


def balanced(rows: int = 32) -> Balanced:
    return Balanced(CostCurve(), rows)
