"""Ask/tell evolution on two numbers, cost and loss, both to be small. It never calls the objective and knows no torch.

Every child aims at one of the budgets (costs that matter to the user: the tiers' ceilings): its parents are the best points
that the budget affords, and it must fit the budget itself. So the front is pushed where somebody will stand on it, and
points found for one budget are parents for all larger ones.

Measuring is dear and most children are no good, so a generation climbs a ladder of rungs, each with more images: after each
rung only the best share of every budget's children goes on (successive halving, Jamieson and Talwalkar, arXiv 1502.07943).

Each generation draws from its own random stream, seeded by (seed, generation): a search that was killed and goes on from
its history takes the same path as one that was not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from search_jobs.space import LATE, Genome, Space

PARENTS, RELATED = 4, 2  # of a budget may have children, and of these so many of one origin


class Child(NamedTuple):
    """A genome to be measured, and the budgets that it is measured for."""

    genome: Genome
    budgets: tuple[float, ...]


class Point(NamedTuple):
    """An evaluated genome, a point of the plane of cost and loss. `rung`: the highest that it reached, from 0.

    Losses compare only within a rung; the last rung counts as the truth.
    """

    genome: Genome
    cost: float
    loss: float
    rung: int = 0


def front(points: Sequence[Point]) -> list[Point]:
    """The non-dominated points, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def hypervolume(points: Sequence[Point], worst: tuple[float, float]) -> float:
    """Area that the front dominates in (ln cost, ln loss) up to the corner `worst` (cost, loss); larger is better."""
    area, edge = 0.0, math.log(worst[1])
    for point in front(points):
        if point.cost < worst[0] and math.log(point.loss) < edge:
            area += (math.log(worst[0]) - math.log(point.cost)) * (edge - math.log(point.loss))
            edge = math.log(point.loss)
    return area


def survivors(children: Sequence[Child], loss_of: Callable[[Genome], float], share: float, least: int = 1) -> list[Child]:
    """The best `share` of each budget's children, and at least so many, in their old order.

    A child goes on for the budgets it won.
    """
    won: dict[Genome, list[float]] = {}
    for budget in dict.fromkeys(budget for child in children for budget in child.budgets):
        rivals = sorted((child.genome for child in children if budget in child.budgets), key=loss_of)
        for genome in rivals[: max(least, round(share * len(rivals)))]:
            won.setdefault(genome, []).append(budget)
    return [Child(child.genome, tuple(won[child.genome])) for child in children if child.genome in won]


@dataclass
class Evolution:
    """`initial` genomes are asked first, then the best of these at other timesteps and on other solvers; after that each
    generation has `population` children that aim at the budgets in turn.

    `cost_of` is known without running anything. Only points of the highest rung seen are parents.
    """

    space: Space
    cost_of: Callable[[Genome], float]
    budgets: Sequence[float]
    population: int = 10
    seed: int = 0
    initial: list[Genome] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)
    generation: int = 0
    _origins: dict[Genome, Genome] = field(default_factory=dict)

    def ask(self) -> list[Child]:
        """The children of this generation, none of which was evaluated before."""
        seen = {point.genome for point in self.history}
        if self.generation == 0:
            fresh = [genome for genome in dict.fromkeys(self.initial) if genome not in seen]
            return [Child(genome, self._smallest(genome)) for genome in fresh]
        if self.generation == 1 and (variants := self._variants(seen)):
            return variants
        rng = Random(f"{self.seed}/{self.generation}")
        children: list[Child] = []
        for i in range(self.population):
            turn = (self.generation - 1) * self.population + i
            budget = self.budgets[turn % len(self.budgets)]
            genome = self._child(budget, seen, rng)
            if genome is not None:
                seen.add(genome)
                children.append(Child(genome, (budget,)))
        return children

    def tell(self, points: Sequence[Point]) -> None:
        """Take the evaluated generation into the history and move on to the next one."""
        self.history += points
        self.generation += 1

    def best(self, budget: float) -> list[Point]:
        """The points of the highest rung that the budget affords, the best first.

        No more than `RELATED` of one origin, and then the rest: relatives are alike, and what chose them may be mistaken.
        """
        top = max((point.rung for point in self.history), default=0)
        ranked = sorted((p for p in self.history if p.rung == top and p.cost <= budget), key=lambda p: p.loss)
        related, first, rest = Counter[Genome](), list[Point](), list[Point]()
        for point in ranked:
            origin = self.origin(point.genome)
            (first if related[origin] < RELATED else rest).append(point)
            related[origin] += 1
        return first + rest

    def origin(self, genome: Genome) -> Genome:
        """The initial genome that one comes from."""
        return self._origins.get(genome, genome)

    def _variants(self, seen: set[Genome]) -> list[Child]:
        """The best of each budget at the best timesteps for as many steps, whatever late steps count, and on every solver."""
        children: list[Child] = []
        for budget in self.budgets:
            for parent in [point.genome for point in self.best(budget)[:PARENTS]]:
                variants = [self.space.retimed(parent, late) for late in LATE]
                variants += [parent._replace(solver=solver) for solver in self.space.solvers]
                for genome in dict.fromkeys(variants):
                    if genome not in seen and self.cost_of(genome) <= budget:
                        seen.add(genome)
                        self._origins[genome] = self.origin(parent)
                        children.append(Child(genome, (budget,)))
        return children

    def _smallest(self, genome: Genome) -> tuple[float, ...]:
        """The smallest budget that affords a genome, if there is one: it would be a poor rival for larger ones."""
        cost = self.cost_of(genome)
        return tuple(sorted(budget for budget in self.budgets if cost <= budget)[:1])

    def _child(self, budget: float, seen: set[Genome], rng: Random, attempts: int = 100) -> Genome | None:
        """A new genome within the budget; None when the attempts run out, as in a space that is exhausted."""
        parents = self.best(budget)[:PARENTS]
        for _ in range(attempts if parents else 0):
            parent = child = rng.choice(parents).genome
            if rng.random() < 0.2:
                child = self.space.crossover(child, rng.choice(parents).genome, rng)
            child = self.space.mutate(child, rng)
            if child not in seen and self.cost_of(child) <= budget:
                self._origins[child] = self.origin(parent)
                return child
        return None
