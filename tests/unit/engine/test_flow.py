"""Flow matching: the levels are diffusers' scheduler's, and its steps are the two equations of every program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from engine.branches import BlockPairs
from engine.flow import FlowLevels, flow_levels
from engine.flow_pipeline import Walked
from engine.program import Program, compile_program
from engine.schedulers import noise_levels
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Correction, ModelRef, Schedule, Segment, Solver, SolverName

MODEL = ModelRef(name="glyphs-dit", family="dit-transformer2d", fingerprint="sha256:" + "0" * 64)
NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GRIDS = [(1.0, 4), (1.0, 50), (3.0, 28), (0.5, 7), (3.0, 1)]


def levels_of(shift: float = 1.0) -> FlowLevels:
    return flow_levels({"shift": shift})


def program_of(*segments: Segment, name: SolverName = "euler", steps: int = 12, shift: float = 1.0, **changes: Any) -> Program:
    solver = Solver(name=name, teacher_steps=steps, spacing="linspace")
    schedule = Schedule(model=MODEL, solver=solver, segments=segments or (Segment(),) * steps, **changes)
    return compile_program(schedule, levels_of(shift), BlockPairs(6))


def direction(x: Tensor, sigma: float) -> Tensor:
    """Stands in for a network: not linear in anything, and of every level another one."""
    return torch.tanh(1.3 * x.flip(-1) + 2 * sigma) - 0.4 * x


def walked(program: Program, noise: Tensor = NOISE) -> tuple[Tensor, list[float]]:
    """What the two equations make of noise, in float64, and the timesteps that the network was shown."""
    x, before, shown = program.start * noise, torch.zeros_like(noise), []
    for step in program.steps:
        shown.append(step.timestep)
        m = direction(x, step.timestep / 1000)
        clean = step.clean_x * x + step.clean_m * m
        x, before = step.next_x * x + step.next_m * m + step.next_0 * clean + step.next_1 * before, clean
    return x, shown


@pytest.mark.parametrize(("shift", "steps"), GRIDS)
def test_euler_is_diffusers_flow_matching_scheduler(shift: float, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    x = NOISE.float()
    for timestep in theirs.timesteps:
        x = theirs.step(direction(x, float(timestep) / 1000), timestep, x).prev_sample
    got, shown = walked(program_of(steps=steps, shift=shift))
    np.testing.assert_allclose(shown, theirs.timesteps, rtol=1e-6)
    torch.testing.assert_close(got, x.double(), rtol=0, atol=2e-6)


def test_the_grid_is_shifted_twice() -> None:
    """The ends of the training grid are shifted already, and what lies between them is shifted again: as read in diffusers."""
    _, shown = walked(program_of(steps=28, shift=3.0))
    assert shown[:3] == pytest.approx([1000, 987.381, 974.108], abs=1e-3)
    assert shown[-2:] == pytest.approx([110.906, 8.929], abs=1e-3)


@pytest.mark.parametrize(("shift", "steps"), GRIDS)
def test_dpm_solver_is_diffusers_on_the_same_levels(shift: float, steps: int) -> None:
    """Its own flow levels begin a little below pure noise; here it is given ours, where λ = −∞ begins."""
    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, lower_order_final=False
    )
    program = program_of(name="dpmsolver++", steps=steps, shift=shift)
    got, shown = walked(program)
    theirs.set_timesteps(steps)
    theirs.sigmas = torch.tensor([*(timestep / 1000 for timestep in shown), 0.0], dtype=torch.float64)
    theirs.timesteps = torch.tensor(shown)
    x = NOISE
    for timestep in theirs.timesteps:
        x = theirs.step(direction(x, float(timestep) / 1000), timestep, x).prev_sample
    torch.testing.assert_close(got, x.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["euler", "dpmsolver++"])
def test_a_null_step_is_a_jump_to_the_next_level_that_is_visited(name: SolverName) -> None:
    """A schedule can also name the levels that it visits, to whole timesteps: the same steps but for the rounding."""
    jumping = program_of(*[Segment()] * 4, name=name, steps=12)
    _, shown = walked(jumping)
    assert shown == [walked(program_of(steps=12))[1][place] for place in (0, 3, 6, 9)]
    sigmas = [timestep / 1000 for timestep in shown]
    if name == "euler":
        x = NOISE
        for here, there in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            x = x + (there - here) * direction(x, here)
        torch.testing.assert_close(walked(jumping)[0], x, rtol=0, atol=1e-12)
    whole = tuple(round(timestep) for timestep in shown)
    named = program_of(*[Segment()] * 4, name=name, steps=12, timesteps=whole)
    assert [step.timestep for step in named.steps] == list(whole)
    assert [step.sigma for step in named.steps] == pytest.approx([*sigmas[1:], 0.0], abs=1e-3)


@pytest.mark.parametrize("name", ["euler", "dpmsolver++"])
def test_all_numbers_are_finite_from_pure_noise_on(name: SolverName) -> None:
    program = program_of(name=name, steps=5)
    assert program.start == 1.0
    assert program.steps[0].timestep == 1000.0
    assert np.isfinite([step.numbers[1:3] + step.numbers[4:] for step in program.steps]).all()


def test_a_start_from_an_image_is_diffusers_noised_image() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(12)
    program = program_of(steps=12, shift=3.0).starting(0.5)
    begin = theirs.timesteps[6]
    want = theirs.scale_noise(torch.ones(1), begin[None], torch.full((1,), 2.0))
    assert program.steps[0].timestep == pytest.approx(float(begin))
    assert program.signal + 2 * program.start == pytest.approx(float(want))


@pytest.mark.parametrize(
    ("solver", "field"),
    [
        (Solver(name="ddim", teacher_steps=4, spacing="linspace"), "solver.name"),
        (Solver(name="lcm", teacher_steps=4, spacing="trailing"), "solver.name"),
        (Solver(name="euler", teacher_steps=4, spacing="trailing"), "solver.spacing"),
        (Solver(name="euler", teacher_steps=4, spacing="linspace", karras=True), "solver.spacing"),
    ],
    ids=str,
)
def test_what_flow_matching_does_not_have_is_refused(solver: Solver, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        levels_of().trajectory(solver)
    assert caught.value.param == field
    if solver.name not in ("euler", "dpmsolver++"):
        with pytest.raises(Unsupported, match=f"flow matching .* {solver.name}; choose dpmsolver"):
            levels_of().solver(solver.name, 4)


@pytest.mark.parametrize(("timesteps", "text"), [((1001, 5), "the limit is 1000"), ((5, 0), "must be at least 1")])
def test_timesteps_of_its_own_lie_between_the_image_and_pure_noise(timesteps: tuple[int, int], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        program_of(Segment(), Segment(), steps=2, timesteps=timesteps)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"shift_terminal": 0.1}, "shift_terminal"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"shift": 0}, "shift"),
        ({"num_train_timesteps": 1.5}, "num_train_timesteps"),
    ],
    ids=str,
)
def test_what_is_not_followed_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        noise_levels({"_class_name": "FlowMatchEulerDiscreteScheduler", **changes})
    assert caught.value.param == field


FLUX = Walked(evenly=True, by_size=True)
SD3 = Walked(by_size=True)
SHIFTS = [
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "max_shift": 1.16, "max_image_seq_len": 1024},
    {"shift": 3.0},
    {},
]


@pytest.mark.parametrize("walked", [FLUX, SD3], ids=["FLUX", "SD3"])
@pytest.mark.parametrize("config", SHIFTS, ids=str)
@pytest.mark.parametrize(("side", "steps"), [(512, 28), (1024, 50), (768, 4)])
def test_levels_of_a_size_are_those_that_the_pipelines_ask_for(
    walked: Walked, config: dict[str, Any], side: int, steps: int
) -> None:
    theirs, tokens = FlowMatchEulerDiscreteScheduler(**config), (side // 16) ** 2
    names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
    line = {name: theirs.config[names.get(name, name)] for name in ("base_seq_len", "max_seq_len", "base_shift", "max_shift")}
    sigmas = np.linspace(1.0, 1 / steps, steps) if walked.evenly else None
    theirs.set_timesteps(steps, sigmas=sigmas, mu=calculate_shift(tokens, **line))
    solver = Solver(name="euler", teacher_steps=steps, spacing="linspace")
    got = flow_levels(config, walked).of_tokens(tokens).trajectory(solver)
    np.testing.assert_allclose(got.timesteps, theirs.timesteps, rtol=1e-6)


def test_fifty_steps_of_a_square_megapixel_as_counted_by_hand() -> None:
    """σ′ = s σ / (1 + (s − 1) σ) with s = e^1.15 of σ = 1, 49/50, …, 1/50; schnell's four are not shifted."""
    levels = flow_levels({"use_dynamic_shifting": True}, FLUX).of_tokens(4096)
    shown = levels.trajectory(Solver(name="euler", teacher_steps=50, spacing="linspace")).timesteps
    assert [*shown[:3], shown[-1]] == pytest.approx([1000, 993.580, 986.979, 60.550], abs=1e-3)
    four = flow_levels({}, FLUX).trajectory(Solver(name="euler", teacher_steps=4, spacing="linspace"))
    assert four.timesteps == pytest.approx([1000, 750, 500, 250])


def test_a_program_of_one_size_is_made_for_another_with_its_corrections() -> None:
    levels, steps = flow_levels({"use_dynamic_shifting": True}, FLUX), 6
    solver = Solver(name="euler", teacher_steps=steps, spacing="linspace")
    corrections = tuple(Correction(latent=i / 100) for i in range(steps))
    schedule = Schedule(model=MODEL, solver=solver, segments=(Segment(),) * steps, corrections=corrections)
    small, large = levels.of_tokens(1024), levels.of_tokens(4096)
    whole = compile_program(schedule, small, BlockPairs(6))
    assert whole.on(small) is whole
    assert whole.on(large).steps == compile_program(schedule, large, BlockPairs(6)).steps
    assert whole.on(large).steps[1].timestep > whole.steps[1].timestep, "larger images stay longer in the noise"
    assert whole.on(large) is whole.on(large)
    begun = whole.on(large).starting(0.5)
    assert begun.steps[0].timestep == whole.on(large).steps[3].timestep


def test_timesteps_of_its_own_are_the_same_at_all_sizes() -> None:
    levels = flow_levels({"use_dynamic_shifting": True}, FLUX)
    solver = Solver(name="euler", teacher_steps=2, spacing="linspace")
    shown = [levels.of_tokens(tokens).trajectory(solver, (900, 200)).timesteps for tokens in (256, 4096)]
    assert (shown[0] == shown[1]).all()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"time_shift_type": "cubic"}, "time_shift_type"),
        ({"base_shift": None}, "base_shift"),
        ({"max_shift": -1.0, "time_shift_type": "linear"}, "max_shift"),
        ({"max_image_seq_len": 256}, "max_image_seq_len"),
        ({"base_image_seq_len": 0.5}, "base_image_seq_len"),
    ],
    ids=str,
)
def test_what_makes_no_dynamic_shift_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        flow_levels({"use_dynamic_shifting": True, **changes}, FLUX)
    assert caught.value.param == field


def test_a_size_that_has_no_levels_is_refused() -> None:
    """A line that falls with the number of patches and crosses 0."""
    linear = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 2.0, "max_shift": 1.0}
    levels = flow_levels(linear, FLUX)
    assert levels.of_tokens(4096).shift == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match="10000 patches") as caught:
        levels.of_tokens(10000)
    assert caught.value.param == "size"
