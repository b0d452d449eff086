"""Folders of Stable Diffusion 3 and FLUX: they draw what diffusers' pipelines draw, ride in waves, and say what they cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import two_streams
from diffusers import FluxImg2ImgPipeline, FluxPipeline, StableDiffusion3Pipeline
from engine_command import call
from model_folders import change
from torch import Tensor

from engine.decoders import Autoencoder
from engine.denoising_task import DenoisingTask
from engine.families.flux import packed
from engine.folder_check import check
from engine.image_size import ImageSize
from engine.loading import load, usual
from engine.model import Model
from engine.policy import FCFS
from engine.sampler import generate
from engine.waves import Waves
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Blocks, Schedule, Segment

SAME = 1e-4
WIDE = ImageSize(12, 24)
PROMPTS = ["a red cat", "blue dogs and a cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("two")
    return {
        "sd3": two_streams.sd3(root / "sd3"),
        "dev": two_streams.flux(root / "dev"),
        "schnell": two_streams.flux(root / "tiny-schnell", guided=False),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Model]:
    torch.set_num_threads(1)
    return {name: load(folder) for name, folder in folders.items()}


def drawn(model: Model, guidance: float, size: ImageSize | None = None, steps: int = 5) -> Tensor:
    """The teacher's latents (2, c, h, w) from the noise of seeds 0 and 1."""
    noise, program = torch.stack([model.noise(seed, size) for seed in (0, 1)]), model.compile(model.teacher(steps), size)
    away = model.negative(["", ""], size) if model.rows(guidance) == 2 else None
    return generate(model.network, program, noise, model.encode(PROMPTS, guidance, size), away, guidance)


@pytest.mark.parametrize("size", [None, WIDE], ids=["own", "wide"])
@pytest.mark.parametrize("name", ["sd3", "dev", "schnell"])
@torch.inference_mode()
def test_all_full_steps_are_diffusers_pipeline(
    folders: dict[str, Path], models: dict[str, Model], name: str, size: ImageSize | None
) -> None:
    """Latents and images, from the same noise, at its own size and at another, where FLUX-dev's levels are others."""
    model, (height, width) = models[name], size or models[name].image_size
    noise = torch.stack([model.noise(seed, size) for seed in (0, 1)])
    given: dict[str, Any] = {"max_sequence_length": two_streams.LENGTH, "num_inference_steps": 5}
    given |= {"prompt": PROMPTS, "height": height, "width": width, "output_type": "pt"}
    if name == "sd3":
        pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folders[name])
        given |= {"latents": noise, "guidance_scale": 4.0, "negative_prompt": ""}
    else:
        pipeline = FluxPipeline.from_pretrained(folders[name])
        given |= {"latents": packed(noise), "guidance_scale": 4.0}
    pipeline.set_progress_bar_config(disable=True)
    got = drawn(model, 1.0 if name == "schnell" else 4.0, size)
    theirs = pipeline(**{**given, "output_type": "latent"}).images
    torch.testing.assert_close(got if name == "sd3" else packed(got), theirs, rtol=0, atol=SAME)
    torch.testing.assert_close(model.decode(got), pipeline(**given).images, rtol=0, atol=SAME)


@torch.inference_mode()
def test_an_image_is_encoded_as_diffusers_does_it(folders: dict[str, Path], models: dict[str, Model]) -> None:
    """(z − shift) · scaling, of the mode of what the encoder says."""
    pipeline = FluxImg2ImgPipeline.from_pretrained(folders["dev"])
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = pipeline.vae.encode(image).latent_dist.mode()
    want = (encoded - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(models["dev"].encode_image(image), want[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_without_a_shift_factor_latents_are_not_shifted(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers' pipelines add null to latents there, and fail."""
    spoilt = Path(shutil.copytree(folders["dev"], tmp_path / "dev"))
    change(spoilt / "vae" / "config.json", shift_factor=None)
    model, latents = load(spoilt), torch.randn(1, 4, 8, 8)
    assert isinstance(model.decoder, Autoencoder)
    want = model.decoder.vae.decode(latents / model.decoder.vae.config.scaling_factor).sample
    assert torch.equal(model.decoder(latents), want)
    change(spoilt / "vae" / "config.json", shift_factor="x")
    with pytest.raises(Unsupported, match="must be a finite number or null") as caught:
        load(spoilt)
    assert caught.value.param == "shift_factor"


def test_a_model_knows_its_guidance_and_its_size(folders: dict[str, Path], models: dict[str, Model]) -> None:
    sd3, dev, schnell = (models[name] for name in ("sd3", "dev", "schnell"))
    assert [model.ref.family for model in (sd3, dev)] == ["sd3-transformer2d", "flux-transformer2d"]
    assert [model.usual_guidance for model in (sd3, dev, schnell)] == [7.0, 3.5, 1.0]
    assert [model.rows(4.0) for model in (sd3, dev)] == [2, 1]
    assert [model.prompts.guides for model in (sd3, dev, schnell)] == [True, True, False]
    assert (dev.few_steps, schnell.few_steps) == (None, 4), "by its name, and as it takes no scale"
    assert [usual(folders[name]) for name in ("sd3", "dev", "schnell")] == [(None, 7.0), (None, 3.5), (4, 1.0)]
    assert [model.teacher_solver for model in (sd3, dev, schnell)] == ["euler"] * 3
    assert dev.image_size == ImageSize(16, 16)
    assert dev.size_multiple == 4
    with pytest.raises(InvalidInput, match="multiples of 4"):
        dev.other_size(ImageSize(18, 16))


def test_a_model_that_takes_no_scale_is_guided_away_from_nothing(models: dict[str, Model]) -> None:
    with pytest.raises(InvalidInput, match="takes no guidance scale, so guidance must be 1") as refused:
        drawn(models["schnell"], 3.5)
    assert refused.value.param == "guidance"


@pytest.mark.parametrize("name", ["sd3", "dev", "schnell"])
def test_macs_on_the_command_line_are_the_models_own(folders: dict[str, Path], models: dict[str, Model], name: str) -> None:
    """FLUX's configuration says how many channels a token of four latent pixels has."""
    counted = call("macs", folders[name], "--json")
    assert counted.exit_code == 0, counted.stderr
    assert json.loads(counted.stdout)["full"]["macs"] == models[name].macs.full.macs


def test_the_scale_is_part_of_the_condition_and_changes_the_image(models: dict[str, Model]) -> None:
    dev = models["dev"]
    condition = dev.encode(["a cat"], 3.5)
    assert condition.guidance is not None
    assert condition.guidance.tolist() == [[3.5]]
    assert not torch.allclose(drawn(dev, 1.0), drawn(dev, 9.0), atol=1e-2)


def test_a_flux_of_no_name_that_takes_no_scale_is_said_to_be_perhaps_distilled(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folders["schnell"], tmp_path / "pictures"))
    loaded = load(other, weights=False)
    assert loaded.few_steps is None
    assert usual(other) == (None, 1.0) == (None, loaded.usual_guidance), "there is nothing to guide by"
    assert [notice.code for notice in loaded.notices] == ["perhaps_distilled"]


SCHEDULES = [
    (Segment.reusing(Blocks(1, 0), (1, 2)),) * 2,
    (Segment.reusing(Blocks(0, 2), (1,)),) * 3,
    (Segment.reusing(Blocks(3, 1), (2,)), Segment.reusing(Blocks(0, 0), (1,))),
    (Segment(),) * 6,
]


@pytest.mark.parametrize("name", ["sd3", "dev"])
@torch.inference_mode()
def test_images_of_all_branches_prompts_and_scales_share_waves_and_end_as_alone(models: dict[str, Model], name: str) -> None:
    model, waves = models[name], None
    waves = Waves(model.network, model.slots(12), FCFS(5))
    jobs = [(Schedule(model=model.ref, solver=model.solver("euler", 6), segments=some), 2.0 + i, PROMPTS[i % 2])
            for i, some in enumerate(SCHEDULES)]  # fmt: skip
    tasks = []
    for seed, (schedule, scale, prompt) in enumerate(jobs):
        two = model.rows(scale) == 2
        task = DenoisingTask(model.compile(schedule), scale if two else None)
        waves.add(task, model.noise(seed), model.encode([prompt], scale), model.negative([""]) if two else None)
        tasks.append((task, two))
        waves.tick()
    while waves.tick():
        pass
    for seed, ((task, two), (schedule, scale, prompt)) in enumerate(zip(tasks, jobs, strict=True)):
        away = model.negative([""]) if two else None
        given = model.noise(seed)[None], model.encode([prompt], scale), away, scale
        alone = generate(model.network, model.compile(schedule), *given)
        assert task.latent is not None
        torch.testing.assert_close(task.latent, alone[0], rtol=0, atol=SAME)


def test_a_slot_holds_the_residuals_of_both_streams(models: dict[str, Model]) -> None:
    dev = models["dev"]
    latent, context, pooled, scale = 2 * 4 * 4 * 8 * 8, 4 * 6 * 24, 64, 64
    assert dev.slot_bytes() == latent + context + pooled + scale + 4 * (16 + two_streams.LENGTH) * 24


@pytest.mark.parametrize("name", ["sd3", "dev"])
def test_it_can_tell_of_itself_without_weights(folders: dict[str, Path], models: dict[str, Model], name: str) -> None:
    check(folders[name])
    empty, model = load(folders[name], weights=False), models[name]
    assert (empty.macs, empty.slot_bytes(), empty.ref) == (model.macs, model.slot_bytes(), model.ref)
