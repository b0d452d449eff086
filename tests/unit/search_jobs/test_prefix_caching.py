"""Corrections land on the teacher's path, and what schedules have in common is computed once without changing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import model_folders
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import small
from torch import Tensor

from engine.condition import Condition
from engine.fresh_noise import stacked
from engine.loading import load
from engine.model import Model
from engine.program import path_of
from engine.program_step import ProgramStep, corrected
from engine.sampler import generate
from registry.corrections import Correction
from registry.schedule import Schedule, Segment, teacher
from search_jobs.fit import UNetCall, fit, fit_extrapolation
from search_jobs.memory import memory_of
from search_jobs.path import TeacherPath, walk
from search_jobs.pieces import Pieces, UNetInPieces
from search_jobs.prefix_caching import PrefixCachingSampler, Sampled
from search_jobs.schedule_walk import MacsSpent
from search_jobs.space import Genome, Space

STEPS = 12
PROMPTS = ["red heart", "cat face", "tomato"]
LARGE = 1000


class Scene:
    """Three images of a model, with or without guidance."""

    def __init__(self, model: Model, guidance: float) -> None:
        self.model, self.guidance = model, guidance
        self.noise = torch.stack([model.noise(seed) for seed in range(len(PROMPTS))])
        self.condition = model.encode(PROMPTS)
        self.negative = model.negative([""] * len(PROMPTS)) if guidance > 1 else None
        self.space = Space(model.ref, model.levels, model.network.branches, teacher_steps=STEPS, segments=(2, 6))
        self.program = model.compile(teacher(model.ref, model.solver("ddim", STEPS)))
        self.points = path_of(self.program.schedule, model.levels)
        self.path = walk(model.network, self.program, self.points, *self.given)

    @property
    def given(self) -> tuple[Tensor, Condition, Condition | None, float]:
        return self.noise, self.condition, self.negative, self.guidance

    def sampler(self, memory: int = 0, rows: int = 1000, extrapolating: bool = False) -> PrefixCachingSampler:
        unet = UNetInPieces(self.model.network, Pieces(memory_of(self.model.device)), rows)
        return PrefixCachingSampler(self.model, unet, *self.given, self.path, memory, extrapolating)

    def alone(self, schedule: Schedule, fitting: bool = False, extrapolating: bool = False) -> Sampled:
        """What a sampler makes of a schedule that shares with no other."""
        (sampled,) = self.sampler(extrapolating=extrapolating).run([schedule], fitting)
        return sampled

    def schedules(self, count: int, seed: int) -> list[Schedule]:
        """Relatives: each a mutation of one before it."""
        rng = Random(seed)
        genomes = [Genome("ddim", (Segment(partial=(1,), branch=2),) * 4)]
        while len(genomes) < count:
            genomes.append(self.space.mutate(rng.choice(genomes), rng))
        return [self.space.schedule(genome) for genome in genomes]

    def macs(self, schedule: Schedule) -> int:
        """Of a schedule that shares with no other, guidance rows included."""
        rows = len(PROMPTS) * (2 if self.guidance > 1 else 1)
        return rows * self.model.macs.of_program(self.model.compile(schedule), 1)

    def plain(self, schedule: Schedule) -> Tensor:
        return generate(self.model.network, self.model.compile(schedule), *self.given)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Model:
    torch.set_num_threads(1)
    return load(model_folders.sd(tmp_path_factory.mktemp("small"), tiny_config))


@pytest.fixture(scope="module", params=[1.0, 3.0], ids=["unguided", "guided"])
def scene(small_model: Model, request: pytest.FixtureRequest) -> Scene:
    """Of random weights: what holds of numbers holds of any."""
    return Scene(small_model, request.param)


@pytest.fixture(scope="module", params=[1.0, 3.0], ids=["unguided", "guided"])
def trained(model: Model, request: pytest.FixtureRequest) -> Scene:
    return Scene(model, request.param)


def test_the_path_passes_through_the_teachers_own_latents(scene: Scene) -> None:
    """At each of its steps, and at the end: by the plain loop over ever longer beginnings of the teacher."""
    torch.testing.assert_close(scene.path.end, scene.plain(scene.program.schedule), rtol=0, atol=1e-4)
    latent = scene.noise
    for step, alpha, sigma in zip(scene.program.steps, scene.points.alphas.tolist(), scene.points.sigmas.tolist(), strict=True):
        torch.testing.assert_close(scene.path.at(alpha, sigma), latent, rtol=0, atol=1e-3)
        begun = replace(scene.program, steps=scene.program.steps[: scene.program.steps.index(step) + 1])
        latent = generate(scene.model.network, begun, *scene.given)


def test_a_clipped_path_has_the_latent_of_each_step_at_its_level(tmp_path: Path) -> None:
    """With x₀ clipped, α x₀ + σ ε of the step that begins at a level is not the latent there; the step before ends there."""
    model = load(model_folders.ddpm(tmp_path / "pixels"))
    program = model.compile(teacher(model.ref, model.solver("ddim", STEPS)))
    points = path_of(program.schedule, model.levels)
    given = torch.stack([model.noise(seed) for seed in range(2)]), model.encode(["", ""]), None, 1.0
    path = walk(model.network, program, points, *given)
    assert (path.clean.abs() == model.levels.clip).any(), "nothing was clipped"
    for i in range(1, STEPS):
        latent = generate(model.network, replace(program, steps=program.steps[:i]), *given)
        for rounded in (1 - 1e-12, 1.0, 1 + 1e-12):
            reached = path.at(points.alphas[i].item(), points.sigmas[i].item() * rounded)
            torch.testing.assert_close(reached, latent, rtol=0, atol=1e-3)
    torch.testing.assert_close(path.end, generate(model.network, program, *given), rtol=0, atol=1e-4)


@pytest.mark.parametrize("build", [model_folders.lcm, model_folders.turbo])
def test_schedules_of_a_stochastic_solver_follow_the_teachers_noise_and_share_what_began_with_it(
    tmp_path: Path, tiny_config: Mapping[str, Any], build: Callable[[Path, Mapping[str, Any]], Path]
) -> None:
    """Four steps are also every other one of eight: the same numbers, but for the places whose noise is added."""
    model = load(build(tmp_path / "turbo", tiny_config))
    fresh, condition = stacked([model.noises(seed) for seed in range(2)]), model.encode(PROMPTS[:2], 8.5)
    given, solver = (fresh(0), condition, None, 8.5), model.solver(model.teacher_solver, 8)
    program = model.compile(model.teacher(8))
    points = path_of(program.schedule, model.levels)
    path = walk(model.network, program, points, *given, fresh)
    for i in range(1, 8):
        latent = generate(model.network, replace(program, steps=program.steps[:i]), *given, fresh)
        torch.testing.assert_close(path.at(points.alphas[i].item(), points.sigmas[i].item()), latent, rtol=0, atol=1e-3)
    jumping, cached = (
        Schedule(model=model.ref, solver=solver, segments=(segment,) * 4)
        for segment in (Segment(), Segment(partial=(1,), branch=2))
    )
    together = [model.teacher(4), jumping, cached, model.teacher(8)]
    assert path_of(together[0], model.levels).timesteps.tolist() == path_of(jumping, model.levels).timesteps.tolist()
    unet = UNetInPieces(model.network, Pieces(memory_of(model.device)), LARGE)
    for memory in (0, 1 << 20):
        sampler = PrefixCachingSampler(model, unet, *given, path, memory, fresh=fresh)
        for schedule, sampled in zip(together, sampler.run(together), strict=True):
            want = generate(model.network, model.compile(schedule), *given, fresh)
            torch.testing.assert_close(sampled.latents, want, rtol=0, atol=1e-4)
    fitted = sampler.run([cached], fitting=True)[0]
    plain = generate(model.network, model.compile(cached), *given, fresh)
    assert (fitted.latents - path.end).square().mean() < (plain - path.end).square().mean()


def test_a_path_is_the_same_after_a_file(scene: Scene) -> None:
    again = TeacherPath.of(scene.path.tensors(), torch.device("cpu"))
    assert torch.equal(again.at(0.6, 0.8), scene.path.at(0.6, 0.8))
    assert torch.equal(again.end, scene.path.end)


@pytest.mark.parametrize("extrapolating", [False, True])
def test_a_fitted_schedule_is_what_the_plain_loop_makes_of_its_document(scene: Scene, extrapolating: bool) -> None:
    found = False
    for schedule in scene.schedules(6, seed=1):
        fitted, latents, _ = scene.alone(schedule, True, extrapolating)
        assert fitted.corrections is not None
        found |= any(correction.extrapolation for correction in fitted.corrections)
        torch.testing.assert_close(latents, scene.plain(Schedule.parse(fitted.document())), rtol=0, atol=1e-4)
    assert found == extrapolating


def test_without_fitting_a_schedule_runs_as_it_is(scene: Scene) -> None:
    for schedule in scene.schedules(3, seed=2):
        same, latents, _ = scene.alone(schedule)
        assert same == schedule
        torch.testing.assert_close(latents, scene.plain(schedule), rtol=0, atol=1e-4)


def test_corrections_bring_the_latents_closer_to_the_teachers(trained: Scene) -> None:
    for schedule in trained.schedules(3, seed=3):
        plain, fitted = (trained.alone(schedule, fitting).latents for fitting in (False, True))
        assert (fitted - trained.path.end).square().mean() < 0.8 * (plain - trained.path.end).square().mean()


def test_corrections_make_one_solver_of_two(trained: Scene) -> None:
    """A step of either is linear in what both have at hand: as they are they part, fitted they hardly do."""
    for schedule in trained.schedules(3, seed=6):
        timesteps = tuple(round(step) for step in path_of(schedule, trained.model.levels).timesteps.tolist())
        both = [
            schedule.model_copy(update={"solver": trained.model.solver(name, STEPS), "timesteps": timesteps})
            for name in ("ddim", "dpmsolver++")
        ]
        plain, fitted = ([trained.alone(one, fitting).latents for one in both] for fitting in (False, True))
        assert (fitted[0] - fitted[1]).square().mean() < 0.02 * (plain[0] - plain[1]).square().mean()


def test_extrapolations_bring_the_latents_closer_still(trained: Scene) -> None:
    """Where features drift: many full steps, each with a partial one long after it."""
    uniform = trained.space.schedule(Genome("ddim", (Segment(partial=(1,), branch=3),) * 6))
    held, ahead = (trained.alone(uniform, True, extrapolating) for extrapolating in (False, True))
    errors = [(sampled.latents - trained.path.end).square().mean() for sampled in (held, ahead)]
    assert errors[1] < errors[0]


def test_what_an_extrapolation_takes_to_find_is_counted(scene: Scene) -> None:
    """At most two more calls of the first partial step after each full step whose feature may be extrapolated."""
    segments = (Segment(partial=(1, 2), branch=2),) * 3
    schedule = scene.space.schedule(Genome("ddim", segments))
    fitted, _, spent = scene.alone(schedule, True, extrapolating=True)
    found = sum(bool(correction.extrapolation) for correction in fitted.corrections or ())
    rows = len(PROMPTS) * (2 if scene.guidance > 1 else 1)
    assert found
    assert spent.run == scene.macs(schedule) + rows * (2 + found) * scene.model.macs.of("partial", 2)


@pytest.mark.parametrize("fitting", [False, True])
@pytest.mark.parametrize("schedules", [LARGE, 5], ids=["all of memory", "a little memory"])
def test_sharing_changes_no_result_and_saves_calls(scene: Scene, fitting: bool, schedules: int) -> None:
    family, memory = scene.schedules(8, seed=4), schedules * scene.sampler().bytes_each
    shared, spent = scene.sampler(memory), MacsSpent()
    for schedule in family:
        expected = scene.alone(schedule, fitting)
        (sampled,) = shared.run([schedule], fitting)
        assert sampled.schedule == expected.schedule
        assert torch.equal(sampled.latents, expected.latents)
        assert expected.spent == MacsSpent(run=scene.macs(schedule))
        spent.run, spent.shared = spent.run + sampled.spent.run, spent.shared + sampled.spent.shared
    assert spent.run + spent.shared == sum(map(scene.macs, family))
    assert spent.shared > 0
    if schedules == LARGE:
        (again,) = shared.run(family[:1], fitting)
        assert again.spent == MacsSpent(shared=scene.macs(family[0])), "all of it is known"
    else:
        assert sum(call.nbytes for call in shared._cache.values()) <= memory
        (again,) = shared.run(family[:1], fitting)
        assert again.spent.run > 0, "some of it had to leave"


def test_sharing_changes_no_extrapolation(scene: Scene) -> None:
    family = scene.schedules(4, seed=4)
    shared = scene.sampler(LARGE * scene.sampler().bytes_each, extrapolating=True)
    for schedule, together in zip(family, scene.sampler(extrapolating=True).run(family, fitting=True), strict=True):
        expected, (sampled,) = scene.alone(schedule, True, extrapolating=True), shared.run([schedule], fitting=True)
        assert sampled.schedule == expected.schedule
        assert torch.equal(sampled.latents, expected.latents)
        assert sampled.spent.run + sampled.spent.shared == expected.spent.run
        torch.testing.assert_close(together.latents, scene.plain(together.schedule), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fitting", [False, True])
@pytest.mark.parametrize("rows", [1000, 7])
def test_schedules_that_run_together_are_what_the_plain_loop_makes_of_each(scene: Scene, fitting: bool, rows: int) -> None:
    """In one call of the UNet or in pieces that cut through schedules, of all lengths, depths and solvers, and one twice."""
    family = scene.schedules(7, seed=5)
    family += [family[3], family[2].model_copy(update={"solver": scene.model.solver("dpmsolver++", STEPS), "timesteps": None})]
    for schedule, sampled in zip(family, scene.sampler(rows=rows).run(family, fitting), strict=True):
        torch.testing.assert_close(sampled.latents, scene.plain(sampled.schedule), rtol=0, atol=1e-4)
        assert sampled.schedule.model_copy(update={"corrections": None}) == schedule
        assert sampled.spent.run + sampled.spent.shared == scene.macs(schedule)
    assert sampled.spent.shared == 0, "no other has its solver"


def unet_call(seed: int, guided: bool) -> UNetCall:
    latent, before, conditional, other = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return UNetCall(latent, before, conditional, other if guided else None, None)


STEP = ProgramStep(3, "full", 0, 500.0, 0.8, -0.6, float("inf"), 0.5, 0.1, 0.7, -0.2)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    guided=st.booleans(),
    by=st.builds(Correction, latent=small, output=small, before=small),
    scale=small,
)
def test_a_correction_that_explains_the_goal_is_found(seed: int, guided: bool, by: Correction, scale: float) -> None:
    """The goal is what a corrected step reaches: the fit finds that correction, or one that is as good where several are."""
    call = unet_call(seed, guided)
    wanted = by.model_copy(update={"guidance": 1 + scale if guided else 1.0})
    goal, _ = call.advance(corrected(STEP, wanted), 3.0)
    got = fit(STEP, call, 3.0, goal)
    reached, _ = call.advance(corrected(STEP, got), 3.0)
    torch.testing.assert_close(reached, goal, rtol=0, atol=1e-4)
    assert got.guidance == pytest.approx(wanted.guidance, abs=1e-3)
    assert got.output == pytest.approx(wanted.output, abs=1e-3)
    assert got.before == pytest.approx(wanted.before, abs=1e-3)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), guided=st.booleans(), weight=st.integers(-4, 9).map(lambda tenths: tenths / 10))
def test_an_extrapolation_that_explains_the_goal_is_found(seed: int, guided: bool, weight: float) -> None:
    """The goal is what the step reaches with this weight and no correction, and outputs are linear in it.

    They change in directions that nothing else at hand has a part in, so that no correction explains any of it.
    """
    plain, trial = unet_call(seed, guided), 0.5
    others = [plain.latent, plain.before, plain.conditional, *([] if plain.unconditional is None else [plain.unconditional])]
    spanned, _ = torch.linalg.qr(torch.stack([other.flatten() for other in others], dim=1).double())

    def beside(change: Tensor) -> Tensor:
        flat = change.flatten().double()
        return (flat - spanned @ (spanned.T @ flat)).float().view_as(change)

    change = unet_call(seed + 1000, guided)
    towards = [beside(change.conditional), None if change.unconditional is None else beside(change.unconditional)]

    def at(share: float) -> UNetCall:
        outputs = [plain.conditional, plain.unconditional]
        moved = [one if by is None or one is None else one + share * by for one, by in zip(outputs, towards, strict=True)]
        assert moved[0] is not None
        return replace(plain, conditional=moved[0], unconditional=moved[1])

    goal, _ = at(weight).advance(STEP, 3.0)
    assert fit_extrapolation(STEP, plain, at(trial), trial, 3.0, goal) == pytest.approx(weight, abs=2e-3)


@pytest.mark.parametrize("goal", [float("nan"), float("inf")])
def test_a_goal_that_is_no_number_corrects_nothing(goal: float) -> None:
    call = unet_call(0, guided=True)
    assert fit(STEP, call, 3.0, torch.full_like(call.latent, goal)) == Correction()
    assert fit_extrapolation(STEP, call, unet_call(1, guided=True), 0.5, 3.0, torch.full_like(call.latent, goal)) == 0.0


def test_where_the_clean_latent_is_clipped_guidance_stays_as_it_is() -> None:
    call = unet_call(1, guided=True)
    got = fit(replace(STEP, clip=1.0), call, 3.0, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)))
    assert got.guidance == 1.0
    assert np.isfinite([got.latent, got.output, got.before]).all()
