"""A search of a transformer of flow matching: its branches are pairs, its levels another frame; all else is as for UNets."""

from __future__ import annotations

from random import Random

import model_folders
import pytest
import torch
from torch import Tensor

from engine.branches import BlockPairs
from engine.flow import flow_levels
from engine.loading import load
from engine.model import Model
from engine.program import path_of
from engine.sampler import generate
from registry.schedule import Blocks, ModelRef, Schedule, Segment, teacher
from search_jobs.baselines import Baselines
from search_jobs.distilled import solvers
from search_jobs.memory import memory_of
from search_jobs.path import walk
from search_jobs.pieces import Pieces, UNetInPieces
from search_jobs.prefix_caching import PrefixCachingSampler
from search_jobs.report.strips import colour
from search_jobs.space import Genome, Space

MODEL = ModelRef(name="glyphs-dit", family="dit-transformer2d", fingerprint="sha256:" + "0" * 64)
PAIRS = BlockPairs(6)
SPACE = Space(MODEL, flow_levels({"shift": 3.0}), PAIRS, teacher_steps=20, solvers=("euler",), segments=(2, 10))
FIRST = Genome("euler", (Segment.reusing(Blocks(1, 0), (1,)),) * 5)


def test_every_walk_stays_among_the_pairs_and_the_levels() -> None:
    seen, genome, rng = set[Blocks](), FIRST, Random(0)
    for i in range(400):
        mutant = SPACE.mutate(genome, rng)
        genome = SPACE.crossover(mutant, genome, rng) if i % 3 == 0 else mutant
        schedule = SPACE.schedule(genome)
        seen |= {branch for branch in schedule.branches if isinstance(branch, Blocks)}
        assert schedule.branches <= set(PAIRS.all)
        assert all(1 <= timestep <= 1000 for timestep in genome.timesteps or ())
        path_of(schedule, SPACE.levels)
    assert len(seen) > 5
    assert {pair.front == 0 for pair in seen} == {pair.back == 0 for pair in seen} == {True, False}


def test_a_schedule_can_be_taken_in_and_given_back() -> None:
    schedule = SPACE.schedule(FIRST)
    genome = SPACE.adopt(schedule)
    assert genome is not None
    assert genome.timesteps is not None
    assert [segment.computes for segment in genome.segments] == [Blocks(1, 0)] * 5


def test_what_is_set_by_hand_has_a_few_blocks_at_the_front_at_the_back_or_at_both_ends() -> None:
    def cost(schedule: Schedule) -> float:
        path_of(schedule, SPACE.levels)  # which refuses spacings that flow matching does not have
        return schedule.counts()["full"] / 20

    found = list(Baselines(MODEL, SPACE.levels, PAIRS, cost, ("euler", "dpmsolver++")).every_setting(0.5, 20))
    families = {baseline.family for baseline in found}
    assert {"fewer-step euler", "cached fewer-step dpmsolver++", "uniform caching", "non-uniform caching"} <= families
    branches = {branch for baseline in found for branch in baseline.schedule.branches}
    assert (
        branches
        == set(PAIRS.usual)
        == {Blocks(0, 0), *(Blocks(*pair) for pair in ((1, 0), (0, 1), (1, 1)))}
        | {*(Blocks(*pair) for pair in ((2, 0), (0, 2), (2, 2), (4, 0), (0, 4)))}
    )
    assert any("s=1+0" in baseline.name for baseline in found)
    assert {baseline.schedule.solver.spacing for baseline in found} == {"linspace"}


def test_strips_are_darker_where_more_blocks_are_computed() -> None:
    shades = [colour("partial", branch, 4) for branch in (Blocks(1, 0), Blocks(1, 1), Blocks(0, 3), Blocks(2, 2))]
    assert len(set(shades)) == 4
    assert colour("partial", Blocks(1, 1), 4) == colour("partial", Blocks(0, 2), 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load(model_folders.flow_dit(tmp_path_factory.mktemp("flow")))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.inference_mode()
def test_fitted_corrections_land_nearer_to_the_teacher_and_are_what_is_then_drawn(model: Model, guidance: float) -> None:
    """Several schedules together, with extrapolations: each ends where the plain loop ends with the corrections fitted here."""
    noise = torch.stack([model.noise(seed) for seed in range(3)])
    negative = model.negative([""] * 3) if guidance > 1 else None
    given = noise, model.encode(["A", "C", "E"]), negative, guidance
    assert solvers(model) == ("euler", "dpmsolver++")
    whole = model.compile(teacher(model.ref, model.solver("euler", 12)))
    path = walk(model.network, whole, path_of(whole.schedule, model.levels), *given)
    sampler = PrefixCachingSampler(
        model, UNetInPieces(model.network, Pieces(memory_of(model.device)), 16), *given, path, 1 << 24, extrapolating=True
    )
    solver = model.solver("euler", 12)
    tried = [
        Schedule(model=model.ref, solver=solver, segments=(Segment.reusing(branch, (2,)),) * 3)
        for branch in (Blocks(1, 0), Blocks(0, 2), Blocks(0, 0))
    ]
    plain, fitted = sampler.run(tried), sampler.run(tried, fitting=True)

    def off(latents: Tensor) -> float:
        return float((latents - path.end).square().mean())

    for without, sampled in zip(plain, fitted, strict=True):
        alone = generate(model.network, model.compile(sampled.schedule), *given)
        torch.testing.assert_close(sampled.latents, alone, rtol=0, atol=1e-3)
        assert off(sampled.latents) < off(without.latents)
