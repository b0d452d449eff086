"""Folders with random weights: as large as the published models, and as good as any other folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from typer.testing import CliRunner

from engine import loading, random_model, sampler
from engine.__main__ import app
from engine.image_size import ImageSize
from registry.errors import Conflict

# As the published checkpoints have them: UNet, autoencoder, text encoders.
PUBLISHED = {
    "sd15": (859_520_964, 83_653_863, 123_060_480),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
}


@pytest.fixture(scope="module", params=["tiny", "tiny-sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("random") / str(request.param)
    done = CliRunner().invoke(app, ["random", request.param, str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_sizes_are_those_of_the_published_models(size: str) -> None:
    model = random_model.SIZES[size]
    with torch.device("meta"):
        texts = [(CLIPTextModel, CLIPTextModelWithProjection)[i](CLIPTextConfig(**text)) for i, text in enumerate(model.texts)]
        parts = UNet2DConditionModel(**model.unet), AutoencoderKL(**model.vae), *texts
    assert tuple(sum(weight.numel() for weight in part.parameters()) for part in parts) == PUBLISHED[size]


@pytest.mark.parametrize("sides", [(1.0, 1.0), (0.5, 1.5)])
def test_a_folder_makes_the_images_that_diffusers_makes_of_it(folder: Path, sides: tuple[float, float]) -> None:
    """At any size: Stable Diffusion XL is told of it."""
    ours, theirs = loading.load(folder), DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    height, width = (round(side * own) for side, own in zip(sides, ours.image_size, strict=True))
    size = ours.other_size(ImageSize(height, width))
    noise = torch.stack([ours.noise(seed, size) for seed in range(2)])
    prompts, steps = ["red heart", "Tiger, by night"], 4
    schedule = ours.compile(ours.teacher(steps))

    euler = type(theirs.scheduler).__name__.startswith("Euler")  # whose last step ends without any noise
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False, set_alpha_to_one=euler)
    expected = theirs(
        prompt=prompts,
        latents=noise,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    conditions = ours.encode(prompts, size=size), ours.negative(["", ""], size)
    made = sampler.generate(ours.network, schedule, noise, *conditions, 3.0)
    assert (made - expected).abs().max() < 1e-4
    images = ours.decode(made)
    assert images.isfinite().all()
    assert images.std() > 0.05
    assert (images[0] - images[1]).abs().max() > 0.05


def test_prompts_of_the_usual_length_are_read_to_their_end(folder: Path) -> None:
    prompts = loading.load(folder).prompts
    assert prompts.cut("a red heart on a white ground, drawn with a brush") == ""
    assert prompts.cut("x" * 80) == "x" * 5


def test_a_size_is_made_the_same_again_and_never_over_something_else(folder: Path, tmp_path: Path) -> None:
    random_model.write(folder.name, tmp_path / "again")
    assert loading.load(tmp_path / "again").ref.fingerprint == loading.load(folder).ref.fingerprint
    with pytest.raises(Conflict, match="is not empty"):
        random_model.write(folder.name, folder)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["huge"], "size: must be one of sd15"), (["tiny", "--dtype", "int8"], "dtype")]
)
def test_what_it_cannot_make_is_said_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["random", *arguments, str(tmp_path / "out")])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr
