"""Small folders of every transformer family: as good as real ones, and what starts from an image is diffusers' there too."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from engine.__main__ import app
from engine.families.flux import packed
from engine.folder_check import check
from engine.fresh_noise import stacked
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from engine.random_model import write
from engine.random_transformers import FAMILIES, LENGTH
from engine.sampler import generate
from engine.source import SourceImage, encoded

SAME = 1e-4
WIDE = ImageSize(32, 96)
PIPELINES = {
    "tiny-sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "tiny-flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder by its size's name, and the model in it: made by the command, in float32."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("random")

    @cache
    def of(size: str) -> tuple[Path, Model]:
        done = CliRunner().invoke(app, ["random", size, str(root / size), "--dtype", "float32"])
        assert done.exit_code == 0, done.output
        return root / size, load(root / size)

    return of


@pytest.mark.parametrize("size", FAMILIES)
def test_a_folder_has_all_that_a_real_one_has_and_is_the_same_again(made: Any, size: str, tmp_path: Path) -> None:
    folder, model = made(size)
    check(folder)
    prompts = ["1", "7"] if size == "tiny-dit" else ["a red heart", "a tiger by night"]
    noise, program = torch.stack([model.noise(1)] * 2), model.compile(model.teacher(3))
    away = model.negative(["", ""]) if model.rows(3.0) == 2 else None
    images = model.decode(generate(model.network, program, noise, model.encode(prompts, 3.0), away, 3.0))
    assert images.isfinite().all()
    assert images.std() > 0.05
    assert (images[0] - images[1]).abs().max() > 1e-3, "a prompt changes the image"
    write(size, tmp_path / "again", "float32")
    assert load(tmp_path / "again", weights=False).ref.fingerprint == model.ref.fingerprint


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("size", PIPELINES)
@torch.inference_mode()
def test_images_that_start_from_another_are_diffusers_pipelines(made: Any, size: str, strength: float, masked: bool) -> None:
    """Of the whole image and of its right half; at a size where FLUX's levels are others than at the model's own."""
    folder, model = made(size)
    levels = torch.randint(0, 256, (*WIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    painted = (torch.arange(WIDE.width) >= WIDE.width // 2).expand(WIDE) if masked else None
    image, guidance, noises = SourceImage(levels, painted), 4.0, stacked([model.noises(5, WIDE)])
    away = model.negative([""], WIDE) if model.rows(guidance) == 2 else None
    source, condition, negative = encoded(model, image, model.encode(["red heart"], guidance, WIDE), away)
    program = image.started(model.compile(model.teacher(6), WIDE), strength)
    got = generate(model.network, program, noises(0), condition, negative, guidance, noises, source)

    pipeline = getattr(diffusers, PIPELINES[size][masked]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"prompt": "red heart", "image": Image.fromarray(levels.numpy()), "strength": strength}
    given |= {"height": WIDE.height, "width": WIDE.width, "max_sequence_length": LENGTH, "num_inference_steps": 6}
    if painted is not None:
        given |= {"mask_image": Image.fromarray(painted.numpy().astype(np.uint8) * 255)}
    generator = torch.Generator().manual_seed(5)
    want = pipeline(**given, guidance_scale=guidance, generator=generator, output_type="latent").images
    torch.testing.assert_close(got if size == "tiny-sd3" else packed(got), want, rtol=0, atol=SAME)
