"""Ask/tell evolution on two numbers, cost and loss, both to be small. It never calls the objective and knows no torch.

Every child aims at one of the budgets (costs that matter to the user: the tiers' ceilings): its parents are the best points
that the budget affords, and it must fit the budget itself. So the front is pushed where somebody will stand on it, and
points found for one budget are parents for all larger ones.

Each generation draws from its own random stream, seeded by (seed, generation): a search that was killed and goes on from
its history takes the same path as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from search_jobs.space import Genome, Space


class Point(NamedTuple):
    """An evaluated genome."""

    genome: Genome
    cost: float
    loss: float


def front(points: Sequence[Point]) -> list[Point]:
    """The non-dominated points, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


@dataclass
class Evolution:
    """`initial` genomes are asked first; then each generation has `population` children that aim at the budgets in turn.

    `cost_of` is known without running anything. `parents`: how many of the best affordable points may have children.
    """

    space: Space
    initial: Sequence[Genome]
    cost_of: Callable[[Genome], float]
    budgets: Sequence[float]
    population: int = 10
    seed: int = 0
    parents: int = 4
    history: list[Point] = field(default_factory=list)
    generation: int = 0

    def ask(self) -> list[Genome]:
        """The genomes of this generation, none of which was evaluated before."""
        seen = {point.genome for point in self.history}
        if self.generation == 0:
            return [genome for genome in dict.fromkeys(self.initial) if genome not in seen]
        rng = Random(f"{self.seed}/{self.generation}")
        children: list[Genome] = []
        for i in range(self.population):
            turn = (self.generation - 1) * self.population + i
            child = self._child(self.budgets[turn % len(self.budgets)], seen, rng)
            if child is not None:
                seen.add(child)
                children.append(child)
        return children

    def tell(self, points: Sequence[Point]) -> None:
        """The evaluated generation. Moves on to the next one."""
        self.history += points
        self.generation += 1

    def _child(self, budget: float, seen: set[Genome], rng: Random, attempts: int = 100) -> Genome | None:
        """A new genome within the budget; None when the attempts run out, as in a space that is exhausted."""
        affordable = sorted((p for p in self.history if p.cost <= budget), key=lambda p: p.loss)[: self.parents]
        for _ in range(attempts if affordable else 0):
            child = rng.choice(affordable).genome
            if rng.random() < 0.2:
                child = self.space.crossover(child, rng.choice(affordable).genome, rng)
            child = self.space.mutate(child, rng)
            if child not in seen and self.cost_of(child) <= budget:
                return child
        return None
