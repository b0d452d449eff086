"""The fewest GPUs that keep a promise, and what those would see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loadtests.capacity.cluster import Outcome

WORTH_TRYING = 2  # times as many GPUs as were too few


@dataclass(frozen=True)
class Promise:
    """p95: seconds in which 95 % of a tier's answered requests have their pixels; refused: share of requests that may be."""

    p95: float
    refused: float = 0.01

    def kept(self, outcome: Outcome) -> bool:
        """Whether it was, for every tier."""
        in_time = all(outcome.quantile(0.95, tier) <= self.p95 for tier in outcome.latencies)
        return in_time and outcome.refused_share <= self.refused


@dataclass
class CapacityPlan:
    """What was tried: outcomes by number of GPUs. needed: the fewest that keep the promise; None if no number does."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    needed: int | None = None

    @property
    def tried(self) -> Mapping[int, Outcome]:
        """In ascending order."""
        return dict(sorted(self.outcomes.items()))


def plan(run: Callable[[int], Outcome], promise: Promise, least: int, most: int) -> CapacityPlan:
    """Double from `least` until the promise is kept, then halve the gap. run: the load on so many GPUs.

    More GPUs never break a promise that fewer keep, but for chance.
    """
    found = CapacityPlan()

    def kept(gpus: int) -> bool:
        if gpus not in found.outcomes:
            found.outcomes[gpus] = run(gpus)
        return promise.kept(found.outcomes[gpus])

    too_few, gpus = least - 1, least
    while not kept(gpus):
        if gpus == most:
            return found
        too_few, gpus = gpus, min(WORTH_TRYING * gpus, most)
    while gpus - too_few > 1:
        middle = (gpus + too_few) // 2
        too_few, gpus = (too_few, middle) if kept(middle) else (middle, gpus)
    found.needed = gpus
    return found
