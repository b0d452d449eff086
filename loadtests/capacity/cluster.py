"""Servers behind a balancer, and a load on them, event by event on a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Literal, get_args

import numpy as np

from loadtests.capacity.gpu import ServerSettings, VirtualGpu, Work
from loadtests.capacity.images import TierPlan, VirtualImage
from loadtests.card import Card
from registry.errors import Overloaded

Balancer = Literal["round-robin", "random", "two-choices", "least-queue"]
BALANCERS: tuple[Balancer, ...] = get_args(Balancer)
USUAL = ServerSettings()


@dataclass(frozen=True)
class Load:
    """Requests for one image each, at random times, `rate` a second (a Poisson process). mix: how often each tier is wanted."""

    rate: float
    mix: Mapping[str, float]
    requests: int
    seed: int = 0

    def arrivals(self) -> Iterator[tuple[float, str]]:
        """Times, ascending, and tiers; the same for the same seed."""
        chance, now = random.Random(self.seed), 0.0
        tiers, weights = list(self.mix), list(self.mix.values())
        for _ in range(self.requests):
            now += chance.expovariate(self.rate)
            yield now, chance.choices(tiers, weights)[0]


@dataclass
class Outcome:
    """What became of a load. latencies: seconds from arrival to pixels, by tier; refused: by tier; end: of the last image."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    end: float = 0.0
    work: list[Work] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        """Of all requests."""
        refused = sum(self.refused.values())
        return refused / max(1, refused + sum(map(len, self.latencies.values())))

    def quantile(self, share: float, tier: str | None = None) -> float:
        """Seconds within which this share of the answered requests had their pixels: of a tier, or of all."""
        every = self.latencies[tier] if tier else [seconds for tier in self.latencies.values() for seconds in tier]
        return float(np.quantile(every, share)) if every else float("nan")

    @property
    def busy(self) -> float:
        """Share of the time until the end that the GPUs were at work."""
        return sum(work.seconds for work in self.work) / (len(self.work) * self.end) if self.end else 0.0

    @property
    def rows_a_wave(self) -> float:
        """On the average."""
        return sum(work.rows for work in self.work) / max(1, sum(work.waves for work in self.work))


def simulate(
    card: Card,
    plans: Mapping[str, TierPlan],
    load: Load,
    gpus: int,
    balancer: Balancer = "least-queue",
    settings: ServerSettings = USUAL,
    seen: float = 0.0,
) -> Outcome:
    """The load on so many servers of one GPU each.

    seen: how old, in seconds, what the balancer knows of the servers' queues is at most; 0 is the present.
    """
    outcome = Outcome()

    def done(image: VirtualImage, now: float) -> None:
        outcome.latencies[image.tier].append(now - image.born)
        outcome.end = now

    servers = [VirtualGpu(card, list(plans.values()), settings, done) for _ in range(gpus)]
    queues = [0.0] * gpus  # what each would say of its own in `X-Flexi-Queue-Seconds`
    choose = _chooser(balancer, queues, random.Random(load.seed + 1), seen)
    ends, arrivals = list[tuple[float, int, int]](), load.arrivals()  # (when, number of the server, of its visit)
    visits = [0] * gpus

    def visit(number: int) -> None:
        """It has something else to do now: what was known of its next end is void."""
        queues[number] = servers[number].queue_seconds
        visits[number] += 1
        if (end := servers[number].next_end()) < inf:
            heapq.heappush(ends, (end, number, visits[number]))

    def run_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            end, number, of_visit = heapq.heappop(ends)
            if of_visit == visits[number]:
                servers[number].advance(end)
                visit(number)

    for now, tier in arrivals:
        run_until(now)
        number = choose(now)
        servers[number].advance(now)
        try:
            servers[number].submit(VirtualImage(plans[tier], now))
        except Overloaded:
            outcome.refused[tier] += 1
        visit(number)
    run_until(inf)
    outcome.work = [server.work for server in servers]
    return outcome


def _chooser(balancer: Balancer, queues: Sequence[float], chance: random.Random, seen: float) -> Callable[[float], int]:
    """Which server gets the next request, by the time at which it comes. queues: in seconds, as they are now."""
    gpus, known, looked = len(queues), list(queues), -inf

    def view(now: float) -> Sequence[float]:
        """What the balancer knows of them."""
        nonlocal known, looked
        if not seen:
            return queues
        if now - looked > seen:
            known, looked = list(queues), now
        return known

    turn = count()
    if balancer == "round-robin" or gpus == 1:
        return lambda now: next(turn) % gpus
    if balancer == "random":
        return lambda now: chance.randrange(gpus)
    if balancer == "two-choices":
        return lambda now: min(chance.sample(range(gpus), 2), key=view(now).__getitem__)

    def least(now: float) -> int:
        view_now, first = view(now), chance.randrange(gpus)  # of several that are empty not always the same
        shortest = min(view_now)
        return view_now.index(shortest, first) if shortest in view_now[first:] else view_now.index(shortest)

    return least
