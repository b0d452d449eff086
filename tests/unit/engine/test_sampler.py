"""The plain loop is diffusers' pipeline when every step is full, and reuses the last full step's feature when not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from engine.condition import Condition
from engine.decoders import Autoencoder
from engine.extrapolation import extrapolated
from engine.image_size import ImageSize
from engine.model import Model
from engine.program import Program, compile_program
from engine.program_step import ProgramStep
from engine.sampler import generate
from engine.schedulers import noise_levels
from engine.text_prompts import TextPrompts
from engine.unrolled import UnrolledUNet
from registry.corrections import Correction
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName, teacher

PROMPTS = ["red heart", "cat face"]
FAMILIES = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
SAME = 1e-5  # seen: 3.4e-6; the README says 4e-6
REF = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)


@pytest.fixture(scope="module")
def pipeline(model: Model) -> StableDiffusionPipeline:
    """diffusers' own pipeline over the same modules."""
    pipe = StableDiffusionPipeline(
        vae=cast(Autoencoder, model.decoder).vae,
        text_encoder=cast(TextPrompts, model.prompts).encoder,
        tokenizer=cast(TextPrompts, model.prompts).tokenizer,
        unet=model.network.unet,
        scheduler=DDIMScheduler.from_pretrained("models/emoji64/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(
    ("solver", "steps", "guidance"),
    [("ddim", 10, 1.0), ("ddim", 10, 3.0), ("dpmsolver++", 10, 1.0), ("dpmsolver++", 10, 3.0), ("dpmsolver++", 50, 3.0)],
)
def test_the_teacher_is_diffusers_pipeline(
    model: Model, pipeline: StableDiffusionPipeline, solver: SolverName, steps: int, guidance: float
) -> None:
    """Guidance of 3, not 7.5: there 50 steps make 1e-4 and more of a rounding error of 1e-7, on both sides."""
    pipeline.scheduler = FAMILIES[solver].from_config(pipeline.scheduler.config)
    noise = torch.stack([model.noise(1), model.noise(2)])
    want = pipeline(
        PROMPTS,
        negative_prompt=["", "blue"],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        output_type="latent",
    ).images
    program = model.compile(teacher(model.ref, model.solver(solver, steps)))
    negative = model.negative(["", "blue"]) if guidance > 1 else None
    got = generate(model.network, program, noise, model.encode(PROMPTS), negative, guidance)
    assert (got - want).abs().max().item() <= SAME


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("text", ["64x96", "96x32"])
def test_the_teacher_is_diffusers_pipeline_at_other_sizes(model: Model, pipeline: StableDiffusionPipeline, text: str) -> None:
    size = ImageSize.parse(text)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = torch.stack([model.noise(seed, size) for seed in (1, 2)])
    want = pipeline(
        PROMPTS,
        height=size.height,
        width=size.width,
        num_inference_steps=10,
        guidance_scale=3.0,
        latents=noise.clone(),
        output_type="latent",
    ).images
    program = model.compile(teacher(model.ref, model.solver("ddim", 10)))
    got = generate(model.network, program, noise, model.encode(PROMPTS, size=size), model.negative(["", ""], size), 3.0)
    assert (got - want).abs().max().item() <= SAME
    assert model.decode(got).shape == (2, 3, *size)


def schedule_of(segments: tuple[Segment, ...], steps: int = 8, solver: SolverName = "ddim") -> Schedule:
    return Schedule(model=REF, solver=Solver(name=solver, teacher_steps=steps, spacing="trailing"), segments=segments)


def compiled(schedule: Schedule) -> Program:
    levels = noise_levels({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"})
    return compile_program(schedule, levels, branches=4)


def program_of(segments: tuple[Segment, ...], steps: int = 8, solver: SolverName = "ddim") -> Program:
    return compiled(schedule_of(segments, steps, solver))


def condition(seed: int, rows: int) -> Condition:
    return Condition(torch.randn(rows, 5, 6, generator=torch.Generator().manual_seed(seed)))


def noise(rows: int) -> Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(3))


class Spy:
    """An `UnrolledUNet` that names each feature it hands out by its timestep and branch, and notes what comes back."""

    def __init__(self) -> None:
        self.partial_steps: list[tuple[int, tuple[int, int]]] = []

    def full(self, sample: Tensor, timesteps: Tensor, context: object, keep: set[int]) -> tuple[Tensor, dict[int, Any]]:
        return sample, {branch: (int(timesteps[0]), branch) for branch in keep}

    def partial(self, sample: Tensor, timesteps: Tensor, context: object, branch: int, feature: Any) -> Tensor:
        assert feature[1] == branch
        self.partial_steps.append((int(timesteps[0]), feature))
        return sample


def test_a_partial_step_gets_the_feature_of_its_segments_full_step() -> None:
    spy = Spy()
    program = program_of((Segment(partial=(1, 3), branch=3), Segment(partial=(2,), branch=1)))
    generate(cast(UnrolledUNet, spy), program, noise(1), Condition())
    times = [step.timestep for step in program.steps]
    assert spy.partial_steps == [(times[1], (times[0], 3)), (times[2], (times[0], 3)), (times[4], (times[3], 1))]


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
def test_partial_steps_come_close_to_full_steps_and_are_not_them(tiny: UNet2DConditionModel, solver: SolverName) -> None:
    network = UnrolledUNet(tiny)
    full = generate(network, program_of((Segment(),) * 8, solver=solver), noise(2), condition(0, 2))
    partial = program_of((Segment(partial=(1,), branch=2),) * 4, solver=solver)
    cached = generate(network, partial, noise(2), condition(0, 2))
    skipped = generate(network, program_of((Segment(),) * 4, solver=solver), noise(2), condition(0, 2))
    assert 1e-4 < (cached - full).abs().mean() < 0.5 * full.std()
    assert not torch.allclose(cached, skipped, atol=1e-4)


def test_guidance_of_one_is_no_guidance_and_of_zero_the_negative_prompt(tiny: UNet2DConditionModel) -> None:
    network, program = UnrolledUNet(tiny), program_of((Segment(partial=(1,), branch=2), Segment()), steps=6)
    wanted, unwanted = condition(0, 2), condition(1, 2)
    for scale, same in ((1.0, wanted), (0.0, unwanted)):
        got = generate(network, program, noise(2), wanted, unwanted, scale)
        torch.testing.assert_close(got, generate(network, program, noise(2), same), rtol=0, atol=1e-5)


def test_guidance_of_two_leads_away_from_the_negative_prompt_in_one_step(tiny: UNet2DConditionModel) -> None:
    """One step is linear in the prediction, so classifier-free guidance extrapolates the latents themselves."""
    network, program = UnrolledUNet(tiny), program_of((Segment(),), steps=1)
    wanted, unwanted = condition(0, 2), condition(1, 2)
    towards, away = (generate(network, program, noise(2), given) for given in (wanted, unwanted))
    got = generate(network, program, noise(2), wanted, unwanted, 2.0)
    torch.testing.assert_close(got, away + 2 * (towards - away), rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(tiny: UNet2DConditionModel) -> None:
    network, program = UnrolledUNet(tiny), program_of((Segment(partial=(1, 2), branch=3), Segment()), solver="dpmsolver++")
    together = generate(network, program, noise(3), condition(0, 3), condition(1, 3), 3.0)
    for i in range(3):
        one = slice(i, i + 1)
        alone = generate(network, program, noise(3)[one], condition(0, 3)[one], condition(1, 3)[one], 3.0)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-5)


def test_corrections_that_change_nothing_change_nothing(tiny: UNet2DConditionModel) -> None:
    plain = schedule_of((Segment(partial=(1,), branch=2), Segment()), steps=6)
    same = plain.model_copy(update={"corrections": (Correction(),) * 3})
    first, second = (generate(UnrolledUNet(tiny), compiled(one), noise(2), condition(0, 2)) for one in (plain, same))
    assert torch.equal(first, second)


def test_a_correction_adds_to_one_step_what_its_document_says(tiny: UNet2DConditionModel) -> None:
    """By hand, two full steps of DDIM with guidance: the second's input is known, so its output can be written down."""
    network, wanted, unwanted = UnrolledUNet(tiny), condition(0, 2), condition(1, 2)
    plain = schedule_of((Segment(), Segment()), steps=2)
    by = Correction(guidance=1.5, latent=0.25, output=-0.5, before=0.125)
    changed = plain.model_copy(update={"corrections": (Correction(), by)})
    first, second = compiled(plain).steps
    start = noise(2)
    clean, middle = by_hand(network, first, start, torch.zeros_like(start), 3.0, wanted, unwanted)
    numbers = replace(second, next_x=second.next_x + 0.25, next_m=second.next_m - 0.5, next_1=second.next_1 + 0.125)
    _, want = by_hand(network, numbers, middle, clean, 4.5, wanted, unwanted)
    got = generate(network, compiled(changed), start, wanted, unwanted, 3.0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_an_extrapolated_feature_lies_beyond_the_full_steps_own(tiny: UNet2DConditionModel) -> None:
    """The partial steps after the third segment's full step reuse F + w (F − what those of the first segment reused)."""
    network, reused = UnrolledUNet(tiny), list[Tensor]()
    partial, full = network.partial, network.full
    made = list[Tensor]()

    def note_full(*given: Any, keep: Any) -> Any:
        output, kept = full(*given, keep=keep)
        made.extend(kept.values())
        return output, kept

    def note_partial(*given: Any) -> Tensor:
        reused.append(given[-1])
        return partial(*given)

    network.full, network.partial = note_full, note_partial  # type: ignore[method-assign]
    plain = schedule_of((Segment(partial=(1,), branch=2), Segment(), Segment(partial=(1, 2), branch=2)), steps=9)
    by = (Correction(),) * 3 + (Correction(extrapolation=0.75),) + (Correction(),) * 2
    generate(network, compiled(plain.model_copy(update={"corrections": by})), noise(2), condition(0, 2), condition(1, 2), 3.0)
    first, last = made
    assert torch.equal(reused[0], first)
    for feature in reused[1:]:
        torch.testing.assert_close(feature, last + 0.75 * (last - first), rtol=0, atol=1e-6)


def test_without_a_weight_what_was_reused_before_does_not_matter() -> None:
    feature, reused = noise(2), torch.full_like(noise(2), float("nan"))
    assert torch.equal(extrapolated(feature, reused, torch.zeros(2)), feature)


def by_hand(
    network: UnrolledUNet, step: ProgramStep, x: Tensor, before: Tensor, guidance: float, wanted: Condition, unwanted: Condition
) -> tuple[Tensor, Tensor]:
    """The clean latent and the next one, by the two equations of a program."""
    times = torch.full((len(x),), step.timestep)
    m, m_0 = (network.full(x, times, given)[0] for given in (wanted, unwanted))
    output = m_0 + guidance * (m - m_0)
    clean = step.clean_x * x + step.clean_m * output
    return clean, step.next_x * x + step.next_m * output + step.next_0 * clean + step.next_1 * before
