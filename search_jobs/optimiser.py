"""Ask/tell evolution on two numbers, cost and loss, both to be small. It never calls the objective and knows no torch.

Selection is NSGA-II's (Deb et al. 2002): non-dominated rank first, then crowding distance, so that the whole front is kept
alive. Each generation draws from its own random stream, seeded by (seed, generation): a search that was killed and goes on
from its history takes the same path as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from search_jobs.space import Genome, Space


class Point(NamedTuple):
    """An evaluated genome."""

    genome: Genome
    cost: float
    loss: float


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good in both numbers and better in one."""
    return a.cost <= b.cost and a.loss <= b.loss and (a.cost, a.loss) != (b.cost, b.loss)


def front(points: Sequence[Point]) -> list[Point]:
    """The non-dominated points, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


@dataclass
class Evolution:
    """`initial` genomes are asked first; then each generation has `population` children of the best points so far."""

    space: Space
    initial: Sequence[Genome]
    population: int = 10
    seed: int = 0
    parents: int = 12
    history: list[Point] = field(default_factory=list)
    generation: int = 0

    def ask(self) -> list[Genome]:
        """The genomes of this generation, none of which was evaluated before."""
        seen = {point.genome for point in self.history}
        if self.generation == 0:
            return [genome for genome in dict.fromkeys(self.initial) if genome not in seen]
        rng = Random(f"{self.seed}/{self.generation}")
        parents = select(self.history, self.parents)
        children: list[Genome] = []
        attempts = 0
        while len(children) < self.population and attempts < 100 * self.population:  # a tiny space may be exhausted
            attempts += 1
            child = self._child(parents, rng)
            if child not in seen:
                seen.add(child)
                children.append(child)
        return children

    def tell(self, points: Sequence[Point]) -> None:
        """The evaluated generation. Moves on to the next one."""
        self.history += points
        self.generation += 1

    def _child(self, parents: Sequence[Point], rng: Random) -> Genome:
        first, second = rng.choice(parents).genome, rng.choice(parents).genome
        if rng.random() < 0.3:
            return self.space.mutate(self.space.crossover(first, second, rng), rng)
        return self.space.mutate(first, rng)


def select(points: Sequence[Point], count: int) -> list[Point]:
    """The best `count` points: whole fronts while they fit, then the least crowded of the next front."""
    chosen: list[Point] = []
    rest = list(points)
    while rest and len(chosen) < count:
        rank = front(rest)
        taken = set(map(id, rank))
        rest = [point for point in rest if id(point) not in taken]
        chosen += sorted(rank, key=crowding(rank).__getitem__, reverse=True)[: count - len(chosen)]
    return chosen


def crowding(rank: Sequence[Point]) -> dict[Point, float]:
    """NSGA-II's crowding distance of the points of one front: how far apart the neighbours are; the ends are infinite."""
    distance = {point: 0.0 for point in rank}
    for axis in (1, 2):
        ordered = sorted(rank, key=lambda p: p[axis])
        spread = (ordered[-1][axis] - ordered[0][axis]) or 1.0
        distance[ordered[0]] = distance[ordered[-1]] = float("inf")
        for before, point, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            distance[point] += (after[axis] - before[axis]) / spread
    return distance
