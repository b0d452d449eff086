"""Evolution knows numbers only; these tests give it a toy problem whose answer is known."""

from dataclasses import replace
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.noise import NoiseLevels, Walk
from registry.schedule import ModelRef, Segment, SolverName
from search_jobs.optimiser import PARENTS, RELATED, Child, Evolution, Point, front, hypervolume, survivors
from search_jobs.space import Genome, Space

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++", "euler")
LEVELS = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", dict.fromkeys(SOLVERS, Walk("trailing", 0)))
SPACE = Space(model=MODEL, levels=LEVELS, branches=7, segments=(5, 5), solvers=("ddim",), retime=False)
BUDGETS = [0.25, 0.15]
START = [Genome("ddim", (Segment(),) * 5)]


def cost_of(genome: Genome) -> float:
    return 0.1 + sum(len(s.partial) * s.branch for s in genome.segments) / 200


def loss_of(genome: Genome) -> float:
    """Each segment wants one partial step at offset 5 with branch 3; anything else costs what it is away from that."""
    return sum(
        min((abs(o - 5) for o in s.partial), default=9) + 0.5 * abs(s.branch - 3) * bool(s.partial) for s in genome.segments
    )


def search(seed: int, generations: int) -> Evolution:
    evolution = Evolution(SPACE, cost_of, BUDGETS, population=10, seed=seed, initial=START)
    for _ in range(generations):
        evolution.tell([Point(c.genome, cost_of(c.genome), loss_of(c.genome)) for c in evolution.ask()])
    return evolution


points = st.lists(
    st.builds(lambda c, loss: Point(START[0], c, loss), st.integers(0, 6).map(float), st.integers(0, 6).map(float)),
    min_size=1,
    max_size=20,
)


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good in both numbers and better in one."""
    return a.cost <= b.cost and a.loss <= b.loss and (a.cost, a.loss) != (b.cost, b.loss)


@given(points)
def test_the_front_is_exactly_what_nothing_dominates(some: list[Point]) -> None:
    expected = {(p.cost, p.loss) for p in some if not any(dominates(q, p) for q in some)}
    assert [(p.cost, p.loss) for p in front(some)] == sorted(expected)


def test_it_never_asks_twice_and_never_over_the_largest_budget() -> None:
    history = search(seed=3, generations=12).history
    genomes = [point.genome for point in history]
    assert len(genomes) == len(set(genomes)) > 100
    assert max(point.cost for point in history) <= 0.25


def test_the_same_seed_takes_the_same_path_and_another_does_not() -> None:
    assert search(seed=5, generations=4).history == search(seed=5, generations=4).history
    assert search(seed=5, generations=4).history != search(seed=6, generations=4).history


def test_going_on_from_a_history_is_the_same_as_never_stopping() -> None:
    whole = search(seed=1, generations=6)
    half = search(seed=1, generations=3)
    resumed = Evolution(SPACE, cost_of, BUDGETS, population=10, seed=1, history=list(half.history), generation=half.generation)
    for _ in range(3):
        resumed.tell([Point(c.genome, cost_of(c.genome), loss_of(c.genome)) for c in resumed.ask()])
    assert resumed.history == whole.history


def test_an_exhausted_space_ends_the_generation_and_not_the_search() -> None:
    tiny = Space(model=MODEL, levels=LEVELS, branches=1, teacher_steps=2, segments=(1, 2), solvers=("ddim",), retime=False)
    start = [Genome("ddim", (Segment(),))]
    evolution = Evolution(tiny, cost_of, [1.0], population=10, initial=start)
    for _ in range(3):
        evolution.tell([Point(child.genome, cost_of(child.genome), 1.0) for child in evolution.ask()])
    assert len(evolution.history) == tiny.size()


def test_for_every_budget_it_finds_better_points_than_as_many_random_ones() -> None:
    wins = 0
    for seed in range(6):
        history = search(seed, generations=20).history
        rng, random = Random(seed), []
        for _ in history:
            genome = START[0]
            for _ in range(rng.randint(1, 12)):
                genome = SPACE.mutate(genome, rng)
            random.append(Point(genome, cost_of(genome), loss_of(genome)))
        for budget in BUDGETS:
            searched, lucky = (min(p.loss for p in points if p.cost <= budget) for points in (history, random))
            wins += searched < lucky
    assert wins == 12


def test_only_points_of_the_highest_rung_have_children() -> None:
    good, lucky = Genome("ddim", (Segment(partial=(5,), branch=3),) * 5), Genome("ddim", (Segment(),) * 5)
    evolution = Evolution(SPACE, cost_of, [1.0], population=10, initial=START)
    evolution.tell([Point(lucky, 0.1, 0.0, rung=0), Point(good, 0.175, 1.0, rung=2)])
    assert [point.genome for point in evolution.best(1.0)] == [good]
    assert evolution.best(0.15) == []


def test_the_best_are_of_more_than_one_origin() -> None:
    """One pattern's descendants are better than anything else: two of them come first, and the rest after the others."""
    lucky, other = START[0], Genome("ddim", (Segment(partial=(9,), branch=1),) * 5)
    evolution = Evolution(SPACE, cost_of, [1.0], population=10, initial=[lucky, other])
    evolution.tell([Point(lucky, 0.1, 1.0), Point(other, 0.1, 100.0)])
    loss = 1.0
    for _ in range(4):
        children = evolution.ask()
        losses = {child.genome: (loss := loss * 0.9) for child in children if evolution.origin(child.genome) == lucky}
        evolution.tell([Point(c.genome, cost_of(c.genome), losses.get(c.genome, 50.0)) for c in children])
    best = evolution.best(1.0)
    assert [evolution.origin(point.genome) for point in best[: RELATED + 2]] == [lucky] * RELATED + [other] * 2
    assert sorted(best, key=lambda point: point.loss)[RELATED + 2].loss < best[RELATED].loss, "relatives were passed over"
    assert {point.genome for point in best} == {point.genome for point in evolution.history}, "and none is lost"


def test_the_second_generation_is_the_best_on_every_solver() -> None:
    both = replace(SPACE, solvers=SOLVERS[:2])
    others = [Genome("ddim", (Segment(partial=(o,), branch=1),) * 5) for o in range(1, 9)]
    evolution = Evolution(both, cost_of, [1.0], population=10, initial=others)
    evolution.tell([Point(child.genome, 0.1, float(i)) for i, child in enumerate(evolution.ask())])
    assert [child.genome for child in evolution.ask()] == [one._replace(solver="dpmsolver++") for one in others[:PARENTS]]
    assert evolution.ask()[0].budgets == (1.0,)


CHILDREN = [
    Child(Genome("ddim", (Segment(partial=(o,), branch=1),) * 5), (0.1, 0.2) if o < 7 else (0.2,)) for o in range(1, 10)
]


@given(st.permutations(range(9)), st.floats(0.01, 1), st.integers(1, 12))
def test_the_best_share_of_each_budgets_children_survives(losses: list[int], share: float, least: int) -> None:
    loss_of = {child.genome: float(loss) for child, loss in zip(CHILDREN, losses, strict=True)}
    left = survivors(CHILDREN, lambda genome: loss_of[genome], share, least)
    for budget, count in ((0.1, 6), (0.2, 9)):
        expected = sorted(loss_of[child.genome] for child in CHILDREN if budget in child.budgets)[
            : max(least, round(share * count))
        ]
        assert sorted(loss_of[child.genome] for child in left if budget in child.budgets) == expected
    assert all(child.budgets for child in left)


@given(points)
def test_the_hypervolume_is_the_area_that_a_fine_grid_finds_dominated(some: list[Point]) -> None:
    moved = [Point(p.genome, 1.0 + p.cost, 1.0 + p.loss) for p in some]
    edges = np.log(np.arange(1.0, 9.0))  # every point lies on this grid
    cells = sum(
        (edges[i + 1] - edges[i]) * (edges[j + 1] - edges[j])
        for i in range(7)
        for j in range(7)
        if any(np.log(p.cost) <= edges[i] and np.log(p.loss) <= edges[j] for p in moved)
    )
    assert abs(hypervolume(moved, (8.0, 8.0)) - cells) < 1e-9
