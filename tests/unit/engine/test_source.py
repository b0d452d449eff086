"""Images that start from another one are those of diffusers' pipelines for it, whatever schedule and company they are in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import model_folders
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from model_folders import EMOJI
from PIL import Image
from torch import Tensor

from engine.decoders import Autoencoder
from engine.fresh_noise import stacked
from engine.loading import load
from engine.model import Model
from engine.program import Program
from engine.sampler import generate
from engine.source import EncodedSource, SourceImage, encoded
from engine.text_prompts import TextPrompts
from registry.corrections import Correction
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment, SolverName, teacher

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
SAME = 1e-4
STEPS = 10
SCHEDULERS: Mapping[SolverName, Any] = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
}


def pixels(size: int) -> Tensor:
    """A smooth picture with an edge, (size, size, 3)."""
    ramp = np.linspace(0, 255, size)
    picture = np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (size, 1)), np.full((size, size), 80.0)], axis=-1)
    picture[size // 4 : size // 2, size // 4 : size // 2] = (250, 20, 30)
    return torch.from_numpy(picture.astype(np.uint8))


def right_half(size: int) -> Tensor:
    painted = torch.zeros(size, size, dtype=torch.bool)
    painted[:, size // 2 :] = True
    return painted


def of_the_mode(pipeline_class: Any, model: Model, solver: SolverName, folder: Path = EMOJI) -> Any:
    """diffusers' pipeline of these components."""
    vae = cast(Autoencoder, model.decoder).vae
    settings = {} if folder == EMOJI else {"clip_sample": False}  # which this pipeline does not say
    pipe = pipeline_class(
        vae=vae,
        text_encoder=cast(TextPrompts, model.prompts).encoder,
        tokenizer=cast(TextPrompts, model.prompts).tokenizer,
        unet=model.network.unet,
        scheduler=SCHEDULERS[solver].from_config(
            json.loads((folder / "scheduler" / "scheduler_config.json").read_text()), **settings
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def started(
    model: Model, program: Program, image: SourceImage, prompt: str = "red heart", guidance: float = 3.0, seed: int = 5
) -> Tensor:
    """Our latent (1, c, h, w) of an image that starts from this one."""
    fresh = stacked([model.noises(seed)])
    source, condition, negative = encoded(model, image, model.encode([prompt]), model.negative([""]))
    return generate(model.network, program, fresh(0), condition, negative, guidance, fresh, source)


def full(model: Model, solver: SolverName, steps: int = STEPS) -> Program:
    return model.compile(teacher(model.ref, model.solver(solver, steps)))


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize(
    ("solver", "strength"),
    [("ddim", 0.35), ("ddim", 1.0), ("dpmsolver++", 0.5), ("euler-ancestral", 0.5)],
)
def test_all_full_it_is_diffusers_own_pipeline(model: Model, solver: SolverName, strength: float) -> None:
    image = SourceImage(pixels(64))
    want = of_the_mode(StableDiffusionImg2ImgPipeline, model, solver)(
        "red heart",
        image=Image.fromarray(image.pixels.numpy()),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    program = full(model, solver).starting(strength)
    assert len(program.steps) == int(STEPS * strength)
    assert (started(model, program, image) - want).abs().max().item() <= SAME


@pytest.mark.usefixtures("modes")
def test_a_model_of_two_encoders_and_sizes_starts_from_images_as_its_own_pipeline_does(
    tmp_path: Path, tiny_config: Mapping[str, Any]
) -> None:
    folder = model_folders.sdxl(tmp_path / "sdxl", tiny_config)
    model = load(folder)
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)  # which its own scheduler does not do
    pipe.set_progress_bar_config(disable=True)
    image = SourceImage(pixels(model.image_size.height))
    want = pipe(
        "red heart",
        image=Image.fromarray(image.pixels.numpy()),
        strength=0.5,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    got = started(model, full(model, "ddim").starting(0.5), image)
    assert (got - want).abs().max().item() <= SAME * max(1, want.abs().max().item())


def inpainted(model: Model, image: SourceImage, solver: SolverName, strength: float, folder: Path = EMOJI) -> Tensor:
    assert image.painted is not None
    height, width = image.painted.shape
    want: Tensor = of_the_mode(StableDiffusionInpaintPipeline, model, solver, folder)(
        "red heart",
        image=Image.fromarray(image.pixels.numpy()),
        mask_image=Image.fromarray(image.painted.numpy().astype(np.uint8) * 255),
        height=height,
        width=width,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    return want


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize(("solver", "strength"), [("ddim", 1.0), ("ddim", 0.6), ("dpmsolver++", 0.5), ("euler-ancestral", 0.5)])
def test_what_is_kept_is_blended_in_as_diffusers_does_it(model: Model, solver: SolverName, strength: float) -> None:
    image = SourceImage(pixels(64), right_half(64))
    plain = full(model, solver)
    program = plain if strength == 1 else plain.starting(strength)
    got = started(model, program, image)
    assert (got - inpainted(model, image, solver, strength)).abs().max().item() <= SAME
    latent = model.encode_image(image.whole)
    assert torch.equal(got[0, :, :, :4], latent[:, :, :4]), "the left half is the source's"


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_an_inpainting_unet_sees_the_picture_around(tmp_path: Path, tiny_config: Mapping[str, Any], strength: float) -> None:
    folder = model_folders.inpainting(tmp_path / "inpainting", tiny_config)
    model = load(folder)
    assert model.inpaints
    assert model.latent_shape == (4, 8, 8)
    image = SourceImage(pixels(16), right_half(16))
    plain = full(model, "ddim")
    program = plain if strength == 1 else plain.starting(strength)
    got = started(model, program, image)
    want = inpainted(model, image, "ddim", strength, folder)
    assert (got - want).abs().max().item() <= SAME * max(1, want.abs().max().item())
    everywhere = SourceImage(image.pixels, torch.ones_like(right_half(16)))
    fresh = stacked([model.noises(5)])
    of_a_text = generate(model.network, plain, fresh(0), model.encode(["red heart"]), model.negative([""]), 3.0)
    torch.testing.assert_close(of_a_text, inpainted(model, everywhere, "ddim", 1.0, folder), rtol=0, atol=SAME * 30)


def of(model: Model, *segments: Segment, length: int = 5, solver: SolverName = "ddim", **fields: Any) -> Schedule:
    given = model.solver(solver, length * len(segments))
    return Schedule(model=model.ref, solver=given, segments=segments, **fields)


SEGMENTS = (Segment(partial=(1, 3), branch=2), Segment(partial=(2,), branch=2), Segment(partial=(1,), branch=2), Segment())


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "euler"])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.5, 0.55, 0.7, 0.95, 1.0])
def test_it_begins_where_the_strength_says_with_a_full_step_of_first_order(
    model: Model, solver: SolverName, strength: float
) -> None:
    schedule = of(model, *SEGMENTS, solver=solver)
    whole, teachers = model.compile(schedule), model.levels.trajectory(schedule.solver)
    program, place = whole.starting(strength), 20 - int(20 * strength)
    first, *rest = program.steps
    assert (first.kind, first.index, first.timestep, first.next_1) == ("full", place, teachers.timesteps[place], 0.0)
    assert (program.signal, program.start) == (teachers.alphas[place], teachers.sigmas[place])
    assert [step.index for step in rest] == [step.index for step in whole.steps if step.index > place]
    assert sum(program.counts.values()) == 20 - place
    assert program is whole.starting(strength), "compiled once"
    for step, after in zip(program.steps, [*program.steps[1:], None], strict=True):
        want = (1.0, 0.0) if after is None else (teachers.alphas[after.index], teachers.sigmas[after.index])
        assert (step.signal, step.sigma) == want


def test_no_partial_step_runs_before_a_full_one_has_kept_its_feature(model: Model) -> None:
    whole, partial = model.compile(of(model, *SEGMENTS)), 0
    for remain in range(1, 21):
        kept = 0
        for step in whole.starting(remain / 20).steps:
            if step.kind == "full":
                kept = step.branch
            else:
                assert step.branch == kept
                partial += 1
    assert partial


def test_steps_behind_the_start_keep_their_corrections(model: Model) -> None:
    plain = of(model, *SEGMENTS)
    fits = tuple(
        Correction(guidance=1 + i / 10, latent=i / 100, extrapolation=0.5 * (i in plain.extrapolating))
        for i in range(plain.computed)
    )
    scaled = [{"guidance": 1.0, "corrections": (Correction(),) * plain.computed}, {"guidance": 3.0, "corrections": fits}]
    for schedule in (of(model, *SEGMENTS, corrections=fits), of(model, *SEGMENTS, scaled_corrections=scaled)):
        whole = model.compile(schedule).at(3.0)
        begun = model.compile(schedule).starting(0.65).at(3.0)  # in the second segment, before its partial step
        assert [step.index for step in begun.steps] == [7, 10, 11, 15]
        first, *rest = begun.steps
        assert (first.guidance, first.extrapolation) == (1.0, 0.0)
        assert rest[0].extrapolation == 0.0, "what the step before it reused is of another place"
        for step in rest:
            (own,) = (one for one in whole.steps if one.index == step.index)
            assert step.guidance == own.guidance
        on_its_own_step = model.compile(schedule).starting(0.5).at(3.0).steps[0]
        assert on_its_own_step.guidance == whole.steps[5].guidance


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_a_strength_that_is_none_is_refused(model: Model, strength: float) -> None:
    with pytest.raises(InvalidInput, match=r"^strength: ") as refused:
        model.compile(of(model, *SEGMENTS)).starting(strength)
    assert refused.value.param == "strength"


def test_however_weak_the_last_step_runs(model: Model) -> None:
    assert [step.index for step in model.compile(of(model, *SEGMENTS)).starting(1e-9).steps] == [19]


@pytest.mark.parametrize("family", ["ddpm", "ldm", "labels"])
def test_families_without_texts_start_from_images_too(tmp_path: Path, family: str) -> None:
    """Pixels, and a codebook: at hardly any noise, the image comes back as well as its autoencoder can tell it."""
    model = load(getattr(model_folders, family)(tmp_path / family))
    image = SourceImage(pixels(model.image_size.height))
    latent = model.encode_image(image.whole)
    assert latent.shape == model.latent_shape
    if family != "ldm":
        torch.testing.assert_close(model.decode(latent[None])[0], (image.whole[0] / 2 + 0.5), rtol=0, atol=1e-6)
    program = full(model, "ddim", 50).starting(0.1)
    fresh = stacked([model.noises(5)])
    got = generate(model.network, program, fresh(0), model.encode([model.prompts.sample]), source=EncodedSource(latent[None]))
    assert got.isfinite().all()
    assert got.shape == (1, *model.latent_shape)
