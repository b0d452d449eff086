"""The search space holds every baseline, and every genome in it is a valid schedule."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.noise import NoiseLevels, Walk
from engine.program import compile_program
from registry.schedule import ModelRef, Segment, SolverName
from search_jobs.baselines import Baselines
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.space import LATE, Genome, Space

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)


SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++", "euler")
LEVELS = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", dict.fromkeys(SOLVERS, Walk("trailing", 0)))


def space(**changes: object) -> Space:
    return Space(**{"model": MODEL, "levels": LEVELS, "branches": 7, **changes})  # type: ignore[arg-type]


BEFORE, AT, AFTER = np.ogrid[-1:40, 0:40, 0:41]
ERRORS = np.where((BEFORE < AT) & (AT < AFTER), np.random.default_rng(0).exponential(size=(41, 40, 41)), np.inf)
BEST = BestTimesteps(list(range(999, 199, -20)), np.linspace(0.1, 1, 41), ERRORS)


@pytest.mark.parametrize("best", [None, BEST], ids=["by moves", "best known"])
@given(seed=st.integers(0, 2**32), steps=st.integers(2, 60), walk=st.integers(1, 12))
def test_every_walk_of_mutations_and_crossovers_stays_in_the_space(
    best: BestTimesteps | None, seed: int, steps: int, walk: int
) -> None:
    rng = Random(seed)
    place = space(teacher_steps=steps, segments=(1, min(16, steps)), best=best)
    first = Genome("ddim", (Segment(),) * rng.randint(1, min(16, steps)))
    second = place.mutate(first, rng)
    for _ in range(walk):
        first, second = place.mutate(place.crossover(first, second, rng), rng), first
        schedule = place.schedule(first)  # the document checks itself
        assert schedule.segments == first.segments
        assert place.segments[0] <= len(first.segments) <= place.segments[1]
        assert all(len(s.partial) <= place.max_partial and s.branch <= place.branches for s in first.segments)


@given(seed=st.integers(0, 2**32), walk=st.integers(1, 20))
def test_timesteps_go_along_with_what_happens_to_the_steps(seed: int, walk: int) -> None:
    """Moved, added, dropped, crossed: there is one for each computed step, and they descend from where the noise is."""
    rng, place = Random(seed), space()
    genome = Genome("ddim", (Segment(partial=(5,), branch=3),) * 5)
    for _ in range(walk):
        genome = place.mutate(place.crossover(genome, place._bend_time(genome, rng), rng), rng)
        schedule, timesteps = place.schedule(genome), place.timesteps(genome)
        assert len(timesteps) == schedule.counts()["full"] + schedule.counts()["partial"]
        assert list(timesteps) == sorted(set(timesteps), reverse=True)
        assert 900 <= timesteps[0] <= 999


def test_a_step_that_stays_where_it_was_keeps_its_timestep() -> None:
    place, segment = space(), Segment(partial=(5,), branch=3)
    genome = Genome("ddim", (segment,) * 5, (999, 940, 700, 640, 500, 333, 300, 111, 50, 7))
    more = place._carry(genome, (*(segment,) * 4, Segment(partial=(2, 5), branch=3)))
    assert more.timesteps == (999, 940, 700, 640, 500, 333, 300, 111, 50, 33, 7), "between its neighbours, where it lies"
    fewer = place._carry(genome, (Segment(), *(segment,) * 4))
    assert fewer.timesteps == (999, 700, 640, 500, 333, 300, 111, 50, 7)


def test_a_genome_is_retimed_where_there_are_as_many_points_and_keeps_its_steps() -> None:
    place, segment = space(best=BEST), Segment(partial=(5,), branch=3)
    genome = Genome("ddim", (segment,) * 5, tuple(range(999, 989, -1)))
    retimed = place.retimed(genome, 1.0)
    assert retimed == genome._replace(timesteps=BEST.chosen(10, 1.0))
    assert retimed.timesteps != genome.timesteps
    many = Genome("ddim", (Segment(partial=(1,), branch=3),) * 24)
    assert place.retimed(many, 1.0) is many, "48 steps, of 40 points"
    assert space().retimed(genome, 1.0) is genome


def test_where_there_are_more_steps_or_fewer_half_of_the_children_are_at_the_best_timesteps() -> None:
    """And some are where nothing but time moved. Where steps only went elsewhere, their times go with them."""
    rng, place, segment = Random(0), space(best=BEST), Segment(partial=(5,), branch=3)
    genome = Genome("ddim", (segment,) * 5, (999, 940, 700, 640, 500, 333, 300, 111, 50, 7))
    at_best: dict[str, list[bool]] = {"other number": [], "elsewhere": [], "same steps": []}
    for _ in range(1500):
        child = place.mutate(genome, rng)
        kind = "other number" if child.computed != 10 else "same steps" if child.segments == genome.segments else "elsewhere"
        at_best[kind].append(child.timesteps in [BEST.chosen(child.computed, late) for late in LATE])
    shares = {kind: np.mean(found) for kind, found in at_best.items()}
    assert 0.45 < shares["other number"] < 0.65
    assert 0.05 < shares["same steps"] < 0.35
    assert shares["elsewhere"] < 0.12, "by a second change"


@given(timesteps=st.lists(st.integers(-5, 30), min_size=1, max_size=34))
def test_timesteps_that_meet_or_pass_the_last_are_moved_apart_as_long_as_there_is_room(timesteps: list[int]) -> None:
    levels = NoiseLevels(np.linspace(0.999, 0.001, 31), 1.0, "epsilon", {"ddim": Walk("trailing", 0)})
    apart = space(levels=levels)._descending(sorted(timesteps, reverse=True))
    assert (apart is None) == (len(timesteps) > 31)
    if apart is not None:
        assert list(apart) == sorted(set(apart), reverse=True)
        assert (len(apart), apart[-1] >= 0, apart[0] <= 30) == (len(timesteps), True, True)
        if min(timesteps) >= 0 and len(set(timesteps)) == len(timesteps):
            assert list(apart) == sorted(timesteps, reverse=True), "what is apart stays"


def test_a_space_without_retiming_stays_on_the_grid() -> None:
    rng, place = Random(0), space(retime=False)
    genome = Genome("ddim", (Segment(partial=(5,), branch=3),) * 5)
    for _ in range(200):
        genome = place.mutate(genome, rng)
        assert genome.timesteps is None


def test_the_grids_own_timesteps_as_genes_are_the_same_program() -> None:
    place = space()
    for solver in ("ddim", "dpmsolver++"):
        genome = Genome(solver, (Segment(partial=(5,), branch=3),) * 5)  # type: ignore[arg-type]
        said = genome._replace(timesteps=place.timesteps(genome))
        plain, told = (compile_program(place.schedule(one), LEVELS, 7) for one in (genome, said))
        assert plain.steps == told.steps


@given(seed=st.integers(0, 2**32))
def test_a_mutation_changes_something(seed: int) -> None:
    genome = Genome("ddim", (Segment(partial=(5,), branch=3),) * 5)
    assert space().mutate(genome, Random(seed)) != genome


def test_size_counts_what_enumeration_finds() -> None:
    place = space(teacher_steps=6, segments=(2, 3), branches=2, max_partial=1)
    digests = set()
    for count in (2, 3):
        length = place.length(count)
        choices = [Segment()] + [Segment(partial=(o,), branch=b) for o in range(1, length) for b in (1, 2)]
        for solver, segments in product(place.solvers, product(choices, repeat=count)):
            digests.add(place.schedule(Genome(solver, segments)).digest)
    assert place.size() == len(digests)


def test_a_space_of_one_point_gives_it_back() -> None:
    place = space(teacher_steps=1, segments=(1, 1), solvers=("ddim",))
    only = Genome("ddim", (Segment(),))
    assert place.mutate(only, Random(0)) == only


BASELINES = Baselines(
    MODEL,
    LEVELS,
    branches=7,
    cost_of=lambda one: (
        one.counts()["full"] / 50 + sum(0.1 * step.branch / 50 for step in one.steps() if step.kind == "partial")
    ),
)


@pytest.mark.parametrize("budget", [0.5, 0.2, 0.08])
def test_what_is_set_by_hand_is_affordable_and_one_full_step_more_is_not(budget: float) -> None:
    strongest = list(BASELINES.strongest(budget, 50, every=(2, 5)))
    assert len({one.schedule.digest for one in strongest}) == len(strongest)
    families = {one.family for one in strongest}
    cached = {"cached fewer-step ddim", "cached fewer-step dpmsolver++"}
    deepcache = {"uniform DeepCache"} if budget > 0.1 else set()  # else 49 partial steps alone cost more
    assert families == {"fewer-step ddim", "fewer-step dpmsolver++"} | cached | deepcache
    for one in strongest:
        assert BASELINES.cost_of(one.schedule) <= budget
        solver, full, every = one.schedule.solver, len(one.schedule.segments), one.schedule.length
        assert one.schedule.counts()["null"] == 0
        if one.family != "uniform DeepCache" and (full + 1) * every <= 50:
            assert BASELINES.cost_of(BASELINES.uniform(solver.name, full + 1, every, one.schedule.segments[0].branch)) > budget
        if one.family == "uniform DeepCache":
            assert abs(solver.teacher_steps - 50) <= every / 2


def test_uniform_deepcache_computes_every_step_and_one_in_n_in_full() -> None:
    schedule = BASELINES.uniform("ddim", 10, 5, 1)
    assert schedule.counts() == {"full": 10, "partial": 40, "null": 0}
    assert [s.index for s in schedule.steps() if s.kind == "full"] == list(range(0, 50, 5))


@pytest.mark.parametrize("teacher_steps", [2, 50, 899, 900])
def test_uniform_deepcache_of_a_long_teacher_keeps_to_the_limit_of_steps(teacher_steps: int) -> None:
    free = Baselines(MODEL, LEVELS, branches=1, cost_of=lambda one: 0.3 if one.length < 599 <= teacher_steps else 0.1)
    (schedule,) = (one.schedule for one in free.strongest(0.2, teacher_steps) if one.family == "uniform DeepCache")
    assert schedule.solver.teacher_steps <= 1000
    assert schedule.length == (599 if teacher_steps > 599 else 2)


def test_a_genome_beyond_the_bounds_stays_a_valid_schedule_and_goes_only_towards_them() -> None:
    place, rng = space(teacher_steps=900, segments=(2, 24)), Random(0)
    genome = Genome("ddim", (Segment(),) * 599)  # 2 steps each would be 1198 steps
    for _ in range(200):
        child = place.mutate(genome, rng)
        assert len(child.segments) <= len(genome.segments)
        assert place.schedule(child).solver.teacher_steps <= 1000
        genome = child


@pytest.mark.parametrize("budget", [1.0, 0.5, 0.2, 0.08, 0.02])
@pytest.mark.parametrize("solver_steps", [50, 24])
def test_the_space_adopts_what_is_set_by_hand_step_for_step(budget: float, solver_steps: int) -> None:
    place, adopted = space(max_partial=49), 0
    for one in BASELINES.strongest(budget, solver_steps):
        genome = place.adopt(one.schedule)
        if genome is None:
            assert place.length(len(one.schedule.segments)) < one.schedule.length, "no room for its partial steps"
            continue
        adopted += 1
        plain, told = (compile_program(schedule, LEVELS, 7) for schedule in (one.schedule, place.schedule(genome)))
        assert [step.need for step in plain.steps] == [step.need for step in told.steps]
        if not one.schedule.solver.karras:  # whose timesteps are no whole numbers, and may meet where they are rounded
            assert [step.timestep for step in plain.steps] == [step.timestep for step in told.steps]
    assert adopted >= 2


@given(seed=st.integers(0, 2**32), walk=st.integers(1, 15))
def test_the_papers_form_has_its_partial_steps_directly_after_the_full_ones(seed: int, walk: int) -> None:
    rng, place = Random(seed), space(offsets="paper", retime=False)
    genome = place.adopt(BASELINES.uniform("ddim", 5, 2, 3))
    assert genome is not None
    for _ in range(walk):
        genome = place.mutate(place.crossover(genome, place.mutate(genome, rng), rng), rng)
        assert genome.timesteps is None
        assert all(s.partial == tuple(range(1, len(s.partial) + 1)) for s in genome.segments)
