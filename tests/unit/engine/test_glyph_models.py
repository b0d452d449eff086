"""The bundled glyph models: they draw what diffusers draws, a classifier can read it, and they are small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    VQModel,
)
from places import ROOT
from safetensors.torch import load_file
from torch import Tensor

from engine.loading import load
from engine.model import Model
from engine.sampler import generate
from evaluation import bundled, extractor
from evaluation.real import real_gaussian
from evaluation.statistics import Statistics

LDM, DDPM, DIT = (ROOT / "models" / f"glyphs-{name}" for name in ("ldm", "ddpm", "dit"))
SAME = 1e-4
LIMIT = 30 * 2**20  # bytes of the three folders
OF_THE_TRANSFORMER = 12 * 2**20  # bytes of its weights
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def ldm() -> Model:
    torch.set_num_threads(1)
    return load(LDM)


def drawn(model: Model, prompts: list[str], steps: int, guidance: float = 1.0) -> Tensor:
    """The teacher's images (n, 3, H, W) from the noise of seeds 0, 1, …."""
    noise = torch.stack([model.noise(seed) for seed in range(len(prompts))])
    negative = model.negative([""] * len(prompts)) if guidance > 1 else None
    program = model.compile(model.teacher(steps))
    return model.decode(generate(model.network, program, noise, model.encode(prompts), negative, guidance))


@torch.inference_mode()
def test_the_latent_model_draws_what_diffusers_own_parts_draw(ldm: Model) -> None:
    unet, vq = UNet2DConditionModel.from_pretrained(LDM / "unet").float(), VQModel.from_pretrained(LDM / "vqvae").float()
    scheduler = DDIMScheduler.from_pretrained(LDM / "scheduler")
    (table,) = load_file(LDM / "class_embedder" / "diffusion_pytorch_model.safetensors").values()
    scheduler.set_timesteps(4)
    latents = torch.stack([ldm.noise(0), ldm.noise(1)])
    classes = table.float()[torch.tensor([5, 36, 62, 62])][:, None]  # "5", "a", and the one that means none
    for timestep in scheduler.timesteps:
        wanted, unwanted = unet(torch.cat([latents] * 2), timestep, classes).sample.chunk(2)
        latents = scheduler.step(unwanted + GUIDANCE * (wanted - unwanted), timestep, latents).prev_sample
    images = vq.decode(latents / vq.config.scaling_factor).sample / 2 + 0.5
    ours = drawn(ldm, ["5", "a"], 4, GUIDANCE)
    assert (ours - images.clamp(0, 1)).abs().max() <= SAME


@torch.inference_mode()
def test_the_transformer_draws_what_diffusers_own_parts_draw() -> None:
    model = load(DIT)
    dit, vq = (
        kind.from_pretrained(DIT / name).float() for kind, name in ((DiTTransformer2DModel, "transformer"), (VQModel, "vqvae"))
    )
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(DIT / "scheduler")
    scheduler.set_timesteps(4)
    latents = torch.stack([model.noise(0), model.noise(1)])
    classes = torch.tensor([5, 36, 62, 62])  # "5", "a", and the one that means none
    for timestep in scheduler.timesteps:
        predicted = dit(torch.cat([latents] * 2), timestep.expand(4), classes).sample
        wanted, unwanted = predicted.chunk(2)
        latents = scheduler.step(unwanted + GUIDANCE * (wanted - unwanted), timestep, latents).prev_sample
    images = vq.decode(latents / vq.config.scaling_factor).sample / 2 + 0.5
    assert (drawn(model, ["5", "a"], 4, GUIDANCE) - images.clamp(0, 1)).abs().max() <= SAME


def test_the_pixel_model_draws_what_diffusers_pipeline_draws() -> None:
    model, pipeline = load(DDPM), DDIMPipeline.from_pretrained(DDPM)
    pipeline.unet.float()
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=4, eta=0.0, output_type="np").images
    grey = drawn(model, [""], 4).permute(0, 2, 3, 1)
    torch.testing.assert_close(grey, torch.from_numpy(want).expand_as(grey), rtol=0, atol=SAME)


@pytest.mark.parametrize(("folder", "guidance", "least"), [(LDM, GUIDANCE, 0.7), (DIT, 5.0, 0.55)])
def test_most_drawn_characters_are_recognised(folder: Path, guidance: float, least: float) -> None:
    prompts = list("ABEGHKPRT2345abdeghknqt")  # without those that look like others
    hits = extractor(bundled(folder)).recognised(drawn(load(folder), prompts, 8, guidance), prompts)
    assert hits is not None
    assert hits.mean() > least  # one in 62 by chance


@pytest.mark.parametrize(("folder", "size"), [(LDM, 64), (DDPM, 32), (DIT, 64)])
def test_statistics_of_held_out_real_pictures_fit_the_models_images(folder: Path, size: int) -> None:
    looks = extractor(bundled(folder))
    mean, root = real_gaussian(bundled(folder) / "real.npz", looks, (size, size))
    assert mean.shape == (96,)
    assert root.shape == (96, 96)
    assert np.isfinite(root).all()
    assert Statistics.read(bundled(folder) / "real.npz").count > 20_000


def test_all_folders_have_the_same_classifier_and_are_small() -> None:
    assert len({extractor(bundled(folder)).name for folder in (LDM, DDPM, DIT)}) == 1
    assert sum(file.stat().st_size for folder in (LDM, DDPM, DIT) for file in folder.rglob("*")) <= LIMIT
    assert sum(file.stat().st_size for file in (DIT / "transformer").iterdir()) <= OF_THE_TRANSFORMER
