"""A program visits diffusers' timesteps and steps as diffusers' schedulers do, over null jumps of any length.

The UNet here is a function of a few lines, the same for both sides, so only the solver is tested. The oracles compute in
float32 (DPM-Solver++ casts to it), so differences are measured against the largest number on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from engine.condition import Condition
from engine.noise import NoiseLevels, Walk
from engine.program import Program, compile_program
from engine.sampler import generate
from engine.schedulers import noise_levels
from engine.unrolled import UnrolledUNet
from registry.corrections import Correction, ScaledCorrections
from registry.errors import InvalidInput, Unsupported
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName, Spacing, teacher

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2

REF = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
BRANCHES = 3
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++", "euler")
FAMILIES = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TOLERANCE = 2e-5  # of the largest number on the way
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


WAVES = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def predict(sample: Tensor, timestep: float) -> Tensor:
    """What the toy UNet says: smooth in the timestep (Karras' are no whole numbers), and a little of the sample, so that errors
    do not grow."""
    said = sum(wave * math.cos(timestep / (20 + 30 * i) + i) for i, wave in enumerate(WAVES))
    return cast(Tensor, said) + 0.1 * sample.flip(-1)


class Toy:
    """Stands in for an `UnrolledUNet`. A partial step says what a full one would, and every timestep asked for is noted."""

    def __init__(self, predict: Callable[[Tensor, float], Tensor] = predict) -> None:
        self.predict = predict
        self.visited: list[float] = []

    def full(self, sample: Tensor, timesteps: Tensor, context: object, keep: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        self.visited.append(float(timesteps[0]))
        return self.predict(sample, self.visited[-1]), {}

    def partial(self, sample: Tensor, timesteps: Tensor, context: object, branch: int, feature: Tensor) -> Tensor:
        return self.full(sample, timesteps, context, set())[0]


def config(**changes: Any) -> dict[str, Any]:
    """A scheduler configuration with everything said that the two schedulers' defaults differ in."""
    plain = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {**plain, "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading", **changes}


@cache
def levels_of(prediction: str, betas: str = "scaled_linear", to_one: bool = True) -> NoiseLevels:
    return noise_levels(config(prediction_type=prediction, beta_schedule=betas, set_alpha_to_one=to_one))


def compiled(schedule: Schedule, levels: NoiseLevels) -> Program:
    return compile_program(schedule, levels, BRANCHES)


def all_full(name: SolverName, steps: int, spacing: Spacing) -> Schedule:
    return teacher(REF, Solver(name=name, teacher_steps=steps, spacing=spacing))


NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def ours(program: Program) -> tuple[Tensor, list[float]]:
    """The plain loop's latents, and the timesteps it asked the UNet for."""
    toy = Toy()
    return generate(cast(UnrolledUNet, toy), program, NOISE, Condition()), toy.visited


def dpm_oracle(settings_: dict[str, Any], timesteps: list[float], order: Literal[1, 2]) -> tuple[Tensor, float]:
    """diffusers' multistep scheduler on custom timesteps: the result and the largest number on the way.

    It rounds its noise levels to float32, which costs digits where two timesteps are close: here they are float64.
    """
    scheduler = DPMSolverMultistepScheduler.from_config({**settings_, "solver_order": order, "final_sigmas_type": "zero"})
    whole = [int(timestep) for timestep in timesteps]
    scheduler.set_timesteps(timesteps=whole)
    cumprod = scheduler.alphas_cumprod.double()[whole]
    exact = torch.cat([((1 - cumprod) / cumprod).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(exact, scheduler.sigmas, rtol=1e-6, atol=0, check_dtype=False)
    scheduler.sigmas = exact
    latent, largest = NOISE, 1.0
    for timestep in scheduler.timesteps:
        latent = scheduler.step(predict(latent, int(timestep)), timestep, latent).prev_sample
        largest = max(
            largest, latent.abs().max().item(), *(m.abs().max().item() for m in scheduler.model_outputs if m is not None)
        )
    return latent, largest


def ddim_oracle(settings_: dict[str, Any], timesteps: list[float]) -> tuple[Tensor, float]:
    """diffusers' DDIM, told before each step how far to jump.

    Its only notion of a jump is num_train_timesteps // num_inference_steps; a fraction makes that any whole number.
    """
    scheduler = DDIMScheduler.from_config(settings_)
    latent, largest = NOISE, 1.0
    whole = [int(timestep) for timestep in timesteps]
    for timestep, following in zip(whole, [*whole[1:], -1], strict=True):
        scheduler.num_inference_steps = Fraction(1000, timestep - following)
        step = scheduler.step(predict(latent, timestep), timestep, latent)
        latent = step.prev_sample
        largest = max(largest, latent.abs().max().item(), step.pred_original_sample.abs().max().item())
    return latent, largest


@st.composite
def schedules(draw: st.DrawFn, solver: SolverName) -> Schedule:
    """Any valid schedule of up to 60 teacher steps for the toy's three branches."""
    count, length = draw(st.integers(1, 10)), draw(st.integers(1, 6))
    offsets = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set[int]())
    segments = []
    for _ in range(count):
        partial = tuple(sorted(draw(offsets)))
        segments.append(Segment(partial=partial, branch=draw(st.integers(1, BRANCHES)) if partial else 1))
    spacing = draw(st.sampled_from(SPACINGS))
    return Schedule(
        model=REF, solver=Solver(name=solver, teacher_steps=count * length, spacing=spacing), segments=tuple(segments)
    )


@st.composite
def karras_schedules(draw: st.DrawFn) -> Schedule:
    """The same for the solvers that have Karras levels, on them or not; at least two steps, for Karras' formula."""
    schedule = draw(schedules(draw(st.sampled_from(("euler", "dpmsolver++")))).filter(lambda s: s.solver.teacher_steps > 1))
    return schedule.model_copy(update={"solver": schedule.solver.model_copy(update={"karras": draw(st.booleans())})})


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_grid_is_diffusers_for_every_number_of_steps(solver: SolverName, spacing: Spacing) -> None:
    for offset in (0, 1):
        settings_ = config(timestep_spacing=spacing, steps_offset=offset)
        scheduler, levels = FAMILIES[solver].from_config(settings_), noise_levels(settings_)
        for steps in [*range(1, 130), 150, 200, 250, 333, 400, 499, 500, 501, 750, 998, 999, 1000]:
            scheduler.set_timesteps(steps)
            want = scheduler.timesteps.tolist()[:steps]  # trailing: for 61, 103, … rounding adds one more, -1
            if want[0] < 1000:  # else diffusers' own grid is past the last training timestep
                got = levels.trajectory(Solver(name=solver, teacher_steps=steps, spacing=spacing)).timesteps
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4, err_msg=f"{offset} {steps}")


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", ["dpmsolver++", "euler"])
def test_karras_levels_are_diffusers(solver: SolverName, spacing: Spacing, betas: str) -> None:
    settings_ = config(timestep_spacing=spacing, beta_schedule=betas, use_karras_sigmas=True)
    scheduler, levels = FAMILIES[solver].from_config(settings_), noise_levels(settings_)
    assert levels.walks[solver].karras
    for steps in (2, 3, 10, 25, 50, 77):
        scheduler.set_timesteps(steps)
        got = levels.trajectory(Solver(name=solver, teacher_steps=steps, spacing=spacing, karras=True))
        np.testing.assert_allclose(got.sigmas / got.alphas, scheduler.sigmas[:-1], rtol=2e-5)
        # where a timestep is within rounding of the next whole one, float32 and float64 may disagree by one
        np.testing.assert_allclose(got.timesteps, scheduler.timesteps, atol=1.0 if solver == "dpmsolver++" else 2e-2)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_eulers_noise_starts_where_diffusers_starts_it(spacing: Spacing) -> None:
    settings_ = config(timestep_spacing=spacing)
    scheduler = EulerDiscreteScheduler.from_config(settings_)
    for steps in (1, 4, 50):
        scheduler.set_timesteps(steps)
        solver = Solver(name="euler", teacher_steps=steps, spacing=spacing)
        want = scheduler.scale_model_input(NOISE * scheduler.init_noise_sigma, scheduler.timesteps[0])
        torch.testing.assert_close(noise_levels(settings_).trajectory(solver).start * NOISE, want, rtol=1e-5, atol=1e-6)


def run_by_hand(schedule: Schedule, settings_: dict[str, Any]) -> tuple[Tensor, float]:
    """diffusers' Euler or DPM-Solver++ on the levels of its own teacher's trajectory that the schedule visits."""
    solver = schedule.solver
    family = FAMILIES[solver.name].from_config({**settings_, "use_karras_sigmas": solver.karras})
    family.set_timesteps(solver.teacher_steps)
    visited = [step.index for step in schedule.steps() if step.kind != "null"]
    family.timesteps = family.timesteps[visited]
    family.sigmas = torch.cat([family.sigmas[visited].double(), torch.zeros(1)])  # float32 would cost digits
    family.num_inference_steps = len(visited)
    family.set_begin_index(0)
    euler = solver.name == "euler"
    start = EulerDiscreteScheduler.from_config({**settings_, "use_karras_sigmas": solver.karras}) if euler else None
    latent, largest = NOISE, 1.0
    if start is not None:
        start.set_timesteps(solver.teacher_steps)
        latent = NOISE * start.init_noise_sigma
    for i, timestep in enumerate(family.timesteps):
        sample = latent / (family.sigmas[i] ** 2 + 1) ** 0.5 if euler else latent
        latent = family.step(predict(sample, float(timestep)), timestep, latent).prev_sample
        shown = latent / (family.sigmas[i + 1] ** 2 + 1) ** 0.5 if euler else latent
        largest = max(largest, shown.abs().max().item())
        if not euler:
            largest = max(largest, *(m.abs().max().item() for m in family.model_outputs if m is not None))
    return latent, largest


@pytest.mark.parametrize("prediction", PREDICTIONS)
@settings(max_examples=60)
@given(schedule=karras_schedules(), betas=st.sampled_from(("linear", "scaled_linear")))
def test_null_jumps_are_diffusers_on_the_same_levels(prediction: str, schedule: Schedule, betas: str) -> None:
    """Euler and DPM-Solver++, on Karras levels and on the model's own, at points of any distance."""
    settings_ = config(prediction_type=prediction, beta_schedule=betas, timestep_spacing=schedule.solver.spacing)
    got, _ = ours(compiled(schedule, noise_levels(settings_)))
    want, largest = run_by_hand(schedule, settings_)
    # timesteps that round to neighbours (see above), and sigmas that diffusers holds in float32, move the toy's answer a little
    tolerance = 5e-3 if schedule.solver.karras else 2e-4
    assert (got - want).abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_zero_terminal_snr_is_diffusers(solver: SolverName, prediction: str, steps: int) -> None:
    settings_ = config(prediction_type=prediction, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    got, timesteps = ours(compiled(all_full(solver, steps, "trailing"), noise_levels(settings_)))
    assert timesteps[0] == 999
    if solver == "ddim":
        want, largest = ddim_oracle(settings_, timesteps)
    else:
        want, largest = run_by_hand(all_full(solver, steps, "trailing"), settings_)
    assert (got - want).abs().max().item() <= 2e-4 * largest


@pytest.mark.parametrize("original", [50, 30, 100])
def test_the_grid_of_consistency_models_is_diffusers_for_every_number_of_steps(original: int) -> None:
    scheduler = LCMScheduler(**config(original_inference_steps=original))
    levels = noise_levels({"_class_name": "LCMScheduler", **scheduler.config})
    for steps in range(1, original + 1):
        scheduler.set_timesteps(steps)
        assert levels.trajectory(levels.solver("lcm", steps)).timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize(
    ("solver", "spacing"), [("lcm", "trailing"), *(("euler-ancestral", spacing) for spacing in SPACINGS)], ids=str
)
def test_a_stochastic_solver_is_diffusers_of_the_same_noise(
    solver: SolverName, spacing: Spacing, steps: int, prediction: str
) -> None:
    settings_ = config(prediction_type=prediction, timestep_spacing=spacing)
    family = {"lcm": LCMScheduler, "euler-ancestral": EulerAncestralDiscreteScheduler}[solver]
    scheduler, generator, largest = family.from_config(settings_), torch.Generator().manual_seed(5), 1.0
    scheduler.set_timesteps(steps)
    latent = NOISE * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(latent, timestep)
        largest = max(largest, shown.abs().max().item())
        latent = scheduler.step(predict(shown, float(timestep)), timestep, latent, generator=generator).prev_sample
    generator.manual_seed(5)
    drawn = [torch.empty(0), *(torch.randn(NOISE.shape, generator=generator) for _ in range(steps))]
    program, toy = compiled(all_full(solver, steps, spacing), noise_levels(settings_)), Toy()
    got = generate(cast(UnrolledUNet, toy), program, NOISE, Condition(), fresh=drawn.__getitem__)
    assert toy.visited == pytest.approx(scheduler.timesteps.tolist())
    assert (got - latent).abs().max().item() <= 2e-4 * largest


def test_epsilon_prediction_says_nothing_without_signal() -> None:
    levels = noise_levels(config(rescale_betas_zero_snr=True))
    with pytest.raises(Unsupported, match="zero terminal SNR"):
        compiled(all_full("ddim", 10, "trailing"), levels)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("bound", [0.3, 1.0])
def test_clipping_the_clean_latent_is_diffusers(prediction: str, bound: float) -> None:
    """Only x₀ is clipped, epsilon is not; and only DDIM's scheduler clips unless the schedule says it."""
    settings_ = config(prediction_type=prediction, clip_sample=True, clip_sample_range=bound)
    levels = noise_levels(settings_)
    got, timesteps = ours(compiled(all_full("ddim", 20, "leading"), levels))
    want, largest = ddim_oracle(settings_, timesteps)
    assert (got - want).abs().max().item() <= TOLERANCE * largest
    free, _ = ours(compiled(all_full("ddim", 20, "leading"), levels_of(prediction)))
    assert (got - free).abs().max() > 0.1
    for solver in ("dpmsolver++", "euler"):
        program = compiled(all_full(cast(SolverName, solver), 20, "leading"), levels)
        assert all(step.clip == math.inf for step in program.steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_clipping_in_dpmsolver_is_diffusers_thresholding_at_its_default_limit(prediction: str, spacing: Spacing) -> None:
    settings_ = config(prediction_type=prediction, timestep_spacing=spacing, clip_sample=True, clip_sample_range=1.0)
    solver = Solver(name="dpmsolver++", teacher_steps=20, spacing=spacing, clip=True)
    got, _ = ours(compiled(teacher(REF, solver), noise_levels(settings_)))
    scheduler = DPMSolverMultistepScheduler.from_config({**settings_, "thresholding": True})
    scheduler.set_timesteps(20)
    latent = NOISE
    for timestep in scheduler.timesteps:
        latent = scheduler.step(predict(latent, int(timestep)), timestep, latent).prev_sample
    assert (got - latent).abs().max() <= 2e-4
    free, _ = ours(compiled(all_full("dpmsolver++", 20, spacing), noise_levels(settings_)))
    assert (got - free).abs().max() > 0.1


def test_clipping_is_refused_where_the_makers_clip_nothing_and_where_it_is_no_choice() -> None:
    schedule = teacher(REF, Solver(name="dpmsolver++", teacher_steps=10, spacing="leading", clip=True))
    with pytest.raises(InvalidInput) as caught:
        compiled(schedule, levels_of("epsilon"))
    assert caught.value.param == "solver.clip"
    for name in ("ddim", "euler"):
        with pytest.raises(ValidationError, match="dpmsolver"):
            Solver(name=cast(SolverName, name), teacher_steps=10, spacing="leading", clip=True)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
@settings(max_examples=40)
@given(data=st.data(), betas=st.sampled_from(BETAS), to_one=st.booleans())
def test_null_jumps_are_diffusers_on_the_same_timesteps(
    solver: SolverName, prediction: str, data: st.DataObject, betas: str, to_one: bool
) -> None:
    """DPM-Solver++ by set_timesteps(timesteps=…); DDIM by its own step with the jump set, and as first-order DPM-Solver++."""
    schedule = data.draw(schedules(solver))
    got, timesteps = ours(compiled(schedule, levels_of(prediction, betas, to_one)))
    grid = levels_of(prediction).trajectory(schedule.solver).timesteps
    assert timesteps == [grid[step.index] for step in schedule.steps() if step.kind != "null"]

    settings_ = config(prediction_type=prediction, beta_schedule=betas, set_alpha_to_one=to_one)
    oracles = [ddim_oracle(settings_, timesteps)] if solver == "ddim" else [dpm_oracle(settings_, timesteps, 2)]
    if solver == "ddim" and to_one:
        oracles.append(dpm_oracle(settings_, timesteps, 1))
    for want, largest in oracles:
        assert (got - want).abs().max().item() <= TOLERANCE * largest


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50, 100])
def test_the_dpmsolver_teacher_is_diffusers_run_by_number_of_steps(steps: int, spacing: Spacing, prediction: str) -> None:
    settings_ = config(prediction_type=prediction, timestep_spacing=spacing)
    scheduler = DPMSolverMultistepScheduler.from_config(settings_)
    scheduler.set_timesteps(steps)
    latent = NOISE
    for timestep in scheduler.timesteps:
        latent = scheduler.step(predict(latent, int(timestep)), timestep, latent).prev_sample
    got, _ = ours(compiled(all_full("dpmsolver++", steps, spacing), levels_of(prediction)))
    torch.testing.assert_close(got, latent, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 7), ("leading", 30), ("leading", 50), ("trailing", 10), ("trailing", 50)]
)
def test_the_ddim_teacher_is_diffusers_run_by_number_of_steps(steps: int, spacing: Spacing, prediction: str) -> None:
    """Where diffusers' DDIM lands on its own next timestep: leading, and trailing with a divisor of 1000."""
    settings_ = config(prediction_type=prediction, timestep_spacing=spacing)
    scheduler = DDIMScheduler.from_config(settings_)
    scheduler.set_timesteps(steps)
    latent = NOISE
    for timestep in scheduler.timesteps:
        latent = scheduler.step(predict(latent, int(timestep)), int(timestep), latent).prev_sample
    got, _ = ours(compiled(all_full("ddim", steps, spacing), levels_of(prediction)))
    torch.testing.assert_close(got, latent, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@settings(max_examples=30)
@given(schedule=schedules("ddim"), data=st.data(), solver=st.sampled_from(SOLVERS))
def test_timesteps_of_ones_own_are_diffusers_on_them(
    prediction: str, schedule: Schedule, data: st.DataObject, solver: SolverName
) -> None:
    """Where they lie is all that matters: not the solver's spacing, and not which steps are partial."""
    computed = sum(step.kind != "null" for step in schedule.steps())
    timesteps = sorted(data.draw(st.sets(st.integers(0, 999), min_size=computed, max_size=computed)), reverse=True)
    solver_ = schedule.solver.model_copy(update={"name": solver, "spacing": "leading"})
    mine = Schedule(model=REF, solver=solver_, segments=schedule.segments, timesteps=tuple(timesteps))
    got, visited = ours(compiled(mine, levels_of(prediction)))
    assert visited == timesteps
    settings_ = config(prediction_type=prediction)
    if solver == "ddim":
        want, largest = ddim_oracle(settings_, visited)
    elif solver == "dpmsolver++":
        want, largest = dpm_oracle(settings_, visited, 2)
    else:
        want, largest = dpm_oracle(settings_, visited, 1)  # Euler is DDIM, and DDIM first-order DPM-Solver++
    assert (got - want).abs().max().item() <= 5 * TOLERANCE * largest  # differences over neighbours magnify rounding


def test_a_timestep_past_training_is_refused() -> None:
    solver = Solver(name="ddim", teacher_steps=2, spacing="leading")
    schedule = Schedule(model=REF, solver=solver, segments=(Segment(), Segment()), timesteps=(1000, 3))
    with pytest.raises(InvalidInput, match="limit is 999") as caught:
        compiled(schedule, levels_of("epsilon"))
    assert caught.value.param == "timesteps"


def test_a_perfect_prediction_is_reached_by_every_solver_and_schedule() -> None:
    """With prediction_type sample and a constant answer, x₀ is that answer whatever was skipped."""
    answer = torch.full((2, 3, 4, 4), 0.25)
    toy = Toy(lambda sample, timestep: answer)
    for solver in SOLVERS:
        segments = (Segment(partial=(2,), branch=2), Segment())
        schedule = Schedule(model=REF, solver=Solver(name=solver, teacher_steps=10, spacing="trailing"), segments=segments)
        got = generate(cast(UnrolledUNet, toy), compiled(schedule, levels_of("sample")), NOISE, Condition())
        torch.testing.assert_close(got, answer, rtol=0, atol=1e-5)


def test_a_full_step_keeps_what_its_own_segment_needs() -> None:
    segments = (Segment(partial=(1, 3), branch=2), Segment(), Segment(partial=(2,), branch=3))
    schedule = Schedule(model=REF, solver=Solver(name="ddim", teacher_steps=12, spacing="leading"), segments=segments)
    steps = compiled(schedule, levels_of("epsilon")).steps
    assert [(s.index, s.kind, s.branch) for s in steps] == [
        (0, "full", 2), (1, "partial", 2), (3, "partial", 2), (4, "full", 0), (8, "full", 3), (10, "partial", 3),
    ]  # fmt: skip


def test_a_branch_past_the_unet_is_refused_by_name() -> None:
    segments = (Segment(), Segment(partial=(1,), branch=BRANCHES + 1))
    schedule = Schedule(model=REF, solver=Solver(name="ddim", teacher_steps=4, spacing="leading"), segments=segments)
    with pytest.raises(InvalidInput, match="1 to 3, got 4") as caught:
        compiled(schedule, levels_of("epsilon"))
    assert caught.value.param == "segments.1.branch"


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trajectory_that_visits_a_timestep_twice_is_refused(solver: SolverName) -> None:
    with pytest.raises(InvalidInput, match="twice") as caught:
        compiled(all_full(solver, 1000, "leading"), levels_of("epsilon"))  # steps_offset 1 has no room for 1000 steps
    assert caught.value.param == "teacher_steps"


def test_more_steps_than_the_model_was_trained_on_are_refused() -> None:
    short = NoiseLevels(np.linspace(0.99, 0.01, 10), 1.0, "epsilon", {"ddim": Walk("leading", 0)})
    with pytest.raises(InvalidInput, match="10 timesteps, got 11"):
        compiled(all_full("ddim", 11, "leading"), short)


def test_karras_is_refused_where_diffusers_has_none() -> None:
    with pytest.raises(ValidationError, match="karras"):
        Solver(name="ddim", teacher_steps=10, spacing="leading", karras=True)


def test_a_program_at_a_scale_is_that_of_the_schedule_with_the_corrections_of_that_scale() -> None:
    solver, levels = Solver(name="ddim", teacher_steps=4, spacing="trailing"), noise_levels({})
    plain = Schedule(model=REF, solver=solver, segments=(Segment(partial=(1,), branch=2), Segment()))
    fits = {1.0: Correction(latent=0.1, guidance=0.9), 3.0: Correction(latent=0.3, guidance=1.1)}
    by_scale = tuple(ScaledCorrections(guidance=scale, corrections=(fit,) * 3) for scale, fit in fits.items())
    program = compile_program(plain.model_copy(update={"scaled_corrections": by_scale}), levels, branches=4)
    between = Correction(latent=0.2, guidance=1.0)
    for scale, fit in (fits | {2.0: between}).items():
        alone = compile_program(plain.model_copy(update={"corrections": (fit,) * 3}), levels, branches=4)
        at_scale = program.at(scale)
        for one, other in zip(at_scale.steps, alone.steps, strict=True):
            assert one.numbers == pytest.approx(other.numbers)
            assert one.guidance == pytest.approx(other.guidance)
        assert at_scale.at(30.0) is at_scale, "no step is corrected twice"
        assert program.at(scale) is at_scale, "threads share it"
        assert alone.at(scale) is alone
