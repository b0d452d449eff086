"""A program visits diffusers' timesteps and steps as diffusers' schedulers do, over null jumps of any length.

The UNet here is a function of a few lines, the same for both sides, so only the solver is tested. The oracles compute in
float32 (DPM-Solver++ casts to it), so differences are measured against the largest number on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.anatomy import Anatomy
from engine.condition import Condition
from engine.noise import NoiseLevels, noise_levels
from engine.program import Program, compile_program
from engine.sampler import generate
from registry.errors import InvalidInput, Unsupported
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName, Spacing, teacher

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2

REF = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
BRANCHES = 3
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++")
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TOLERANCE = 2e-5  # of the largest number on the way
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def predict(sample: Tensor, timestep: int) -> Tensor:
    """What the toy UNet says: random for each timestep, and a little of the sample, so that errors do not grow."""
    return torch.randn(sample.shape, generator=torch.Generator().manual_seed(timestep)) + 0.1 * sample.flip(-1)


class Toy:
    """Stands in for an Anatomy. A partial step says what a full one would, and every timestep asked for is noted."""

    def __init__(self, predict: Callable[[Tensor, int], Tensor] = predict) -> None:
        self.predict = predict
        self.visited: list[int] = []

    def full(self, sample: Tensor, timesteps: Tensor, context: object, keep: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        self.visited.append(int(timesteps[0]))
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


def ours(program: Program) -> tuple[Tensor, list[int]]:
    """The plain loop's latents, and the timesteps it asked the UNet for."""
    toy = Toy()
    return generate(cast(Anatomy, toy), program, NOISE, Condition()), toy.visited


def dpm_oracle(settings_: dict[str, Any], timesteps: list[int], order: Literal[1, 2]) -> tuple[Tensor, float]:
    """diffusers' multistep scheduler on custom timesteps: the result and the largest number on the way.

    It rounds its noise levels to float32, which costs digits where two timesteps are close: here they are float64.
    """
    scheduler = DPMSolverMultistepScheduler.from_config({**settings_, "solver_order": order, "final_sigmas_type": "zero"})
    scheduler.set_timesteps(timesteps=timesteps)
    cumprod = scheduler.alphas_cumprod.double()[timesteps]
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


def ddim_oracle(settings_: dict[str, Any], timesteps: list[int]) -> tuple[Tensor, float]:
    """diffusers' DDIM, told before each step how far to jump.

    Its only notion of a jump is num_train_timesteps // num_inference_steps; a fraction makes that any whole number.
    """
    scheduler = DDIMScheduler.from_config(settings_)
    latent, largest = NOISE, 1.0
    for timestep, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
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


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_grid_is_diffusers_for_every_number_of_steps(solver: SolverName, spacing: Spacing) -> None:
    family = DDIMScheduler if solver == "ddim" else DPMSolverMultistepScheduler
    for offset in (0, 1):
        settings_ = config(timestep_spacing=spacing, steps_offset=offset)
        scheduler, levels = family.from_config(settings_), noise_levels(settings_)
        for steps in [*range(1, 130), 150, 200, 250, 333, 400, 499, 500, 501, 750, 998, 999, 1000]:
            scheduler.set_timesteps(steps)
            want = scheduler.timesteps.tolist()[:steps]  # trailing: for 61, 103, … rounding adds one more, -1
            if want[0] < 1000:  # else diffusers' own grid is past the last training timestep
                assert levels.timesteps(solver, steps, spacing).tolist() == want, (offset, steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=40)
@given(data=st.data(), betas=st.sampled_from(BETAS), to_one=st.booleans())
def test_null_jumps_are_diffusers_on_the_same_timesteps(
    solver: SolverName, prediction: str, data: st.DataObject, betas: str, to_one: bool
) -> None:
    """DPM-Solver++ by set_timesteps(timesteps=…); DDIM by its own step with the jump set, and as first-order DPM-Solver++."""
    schedule = data.draw(schedules(solver))
    got, timesteps = ours(compiled(schedule, levels_of(prediction, betas, to_one)))
    grid = levels_of(prediction).timesteps(solver, schedule.solver.teacher_steps, schedule.solver.spacing)
    assert timesteps == [int(grid[step.index]) for step in schedule.steps() if step.kind != "null"]

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


def test_a_perfect_prediction_is_reached_by_every_solver_and_schedule() -> None:
    """With prediction_type sample and a constant answer, x₀ is that answer whatever was skipped."""
    answer = torch.full((2, 3, 4, 4), 0.25)
    toy = Toy(lambda sample, timestep: answer)
    for solver in SOLVERS:
        segments = (Segment(partial=(2,), branch=2), Segment())
        schedule = Schedule(model=REF, solver=Solver(name=solver, teacher_steps=10, spacing="trailing"), segments=segments)
        got = generate(cast(Anatomy, toy), compiled(schedule, levels_of("sample")), NOISE, Condition())
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
    short = NoiseLevels(np.linspace(0.99, 0.01, 10), 1.0, "epsilon", "leading", 0)
    with pytest.raises(InvalidInput, match="10 timesteps, got 11"):
        compiled(all_full("ddim", 11, "leading"), short)


def test_an_unknown_prediction_type_is_refused() -> None:
    levels = levels_of("flow_prediction")
    with pytest.raises(Unsupported, match="flow_prediction"):
        compiled(all_full("ddim", 4, "leading"), levels)


@pytest.mark.parametrize("setting", ["thresholding", "clip_sample", "rescale_betas_zero_snr"])
def test_a_scheduler_setting_that_programs_cannot_express_is_refused(setting: str) -> None:
    with pytest.raises(Unsupported) as caught:
        noise_levels(config(**{setting: True}))
    assert caught.value.param == setting
