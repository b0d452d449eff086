"""Every family of models, small and with random weights: saved by diffusers, loaded by us, held to diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from places import ROOT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from engine.__main__ import app
from engine.loading import load
from engine.macs import StepMacs, count_steps, example, meta_network
from engine.model import Model
from engine.sampler import generate
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Schedule, Segment, SolverName, teacher

DATA = ROOT / "tests" / "data"
STEPS = 10
SAME = 1e-4


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    return model_folders.sdxl(tmp_path_factory.mktemp("xl") / "sdxl", tiny_config)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.ddpm(tmp_path_factory.mktemp("pixels") / "ddpm")


@pytest.fixture(scope="module")
def ldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.ldm(tmp_path_factory.mktemp("latent") / "ldm")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    return model_folders.classes(tmp_path_factory.mktemp("classes") / "ldm4g", tiny_config)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.labels(tmp_path_factory.mktemp("labels") / "labelled")


FAMILIES = {"sdxl": "a cat", "ddpm": "", "ldm": "", "classes": "cat", "labels": "4"}  # a prompt for each


def ours(
    model: Model, prompts: list[str], guidance: float = 1.0, negative: str = "", solver: SolverName = "ddim"
) -> tuple[Tensor, Tensor]:
    """The teacher's latents and images from the noise of seeds 0, 1, …."""
    noise = torch.stack([model.noise(seed) for seed in range(len(prompts))])
    program = model.compile(teacher(model.ref, model.solver(solver, STEPS)))
    unwanted = model.negative([negative] * len(prompts)) if guidance > 1 else None
    latents = generate(model.network, program, noise, model.encode(prompts), unwanted, guidance)
    return latents, model.decode(latents)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (3.0, None), (3.0, "red")])
@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_is_diffusers_pipeline(sdxl: Path, solver: SolverName, guidance: float, negative: str | None, zeros: bool) -> None:
    folder = sdxl.parent / f"zeros-{zeros}".lower()
    if not folder.exists():
        shutil.copytree(sdxl, folder)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": zeros}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if solver == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    model = load(folder)
    prompts = ["a cat", "two red hearts"]
    noise = torch.stack([model.noise(0), model.noise(1)])
    said = {"negative_prompt": [negative] * 2} if negative is not None else {}
    for output_type in ("latent", "pt"):
        want = pipeline(
            prompts, num_inference_steps=STEPS, guidance_scale=guidance, latents=noise.clone(), output_type=output_type, **said
        ).images
        latents, images = ours(model, prompts, guidance, negative or "", solver)
        got = latents if output_type == "latent" else images
        # Euler's latents are in the exploding frame until the last step, where both are the clean latent
        assert (got - want).abs().max().item() <= SAME * max(1, want.abs().max().item())


def test_a_half_precision_decoder_of_xl_runs_in_bfloat16(sdxl: Path) -> None:
    from engine.decoders import Autoencoder

    model = load(sdxl, dtype="float16")
    assert isinstance(model.decoder, Autoencoder)
    assert model.network.dtype == torch.float16
    assert model.decoder.vae.dtype == torch.bfloat16, "force_upcast is diffusers' default"


def moved_to_the_root(folder: Path) -> Path:
    """The layout of the first pipelines: the one network's files beside model_index.json."""
    old = folder.parent / "old-layout"
    shutil.copytree(folder, old, dirs_exist_ok=True)
    for component in ("unet", "scheduler"):
        for file in (old / component).iterdir():
            file.rename(old / file.name)
        (old / component).rmdir()
    return old


@pytest.mark.parametrize("layout", ["folders", "root"])
def test_ddpm_is_diffusers_ddim_pipeline(ddpm: Path, layout: str) -> None:
    """With clipping, which DDPM's scheduler does unless told otherwise."""
    folder = ddpm if layout == "folders" else moved_to_the_root(ddpm)
    model = load(folder)
    assert model.levels.clip == 1.0
    pipeline = DDIMPipeline.from_pretrained(ddpm)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    want = pipeline(generator=generator, num_inference_steps=STEPS, eta=0.0, output_type="np").images
    _, images = ours(model, [""])
    torch.testing.assert_close(images.permute(0, 2, 3, 1), torch.from_numpy(want), rtol=0, atol=SAME)


def test_unconditional_latent_diffusion_is_diffusers_pipeline(ldm: Path) -> None:
    model, pipeline = load(ldm), LDMPipeline.from_pretrained(ldm)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    want = pipeline(generator=generator, eta=0.0, num_inference_steps=STEPS, output_type="np").images
    _, images = ours(model, [""])
    assert model.image_size == (16, 16)
    torch.testing.assert_close(images.permute(0, 2, 3, 1), torch.from_numpy(want), rtol=0, atol=SAME)


def by_hand(model: Model, forward: Callable[[Tensor, Tensor], Tensor], clip: bool) -> Tensor:
    """diffusers' DDIM scheduler around any UNet call."""
    scheduler = DDIMScheduler.from_config({**(model_folders.LATENT_SCHEDULER if not clip else {}), "clip_sample": clip})
    scheduler.set_timesteps(STEPS)
    latent = model.noise(0)[None]
    for timestep in scheduler.timesteps:
        latent = scheduler.step(forward(latent, timestep), timestep, latent).prev_sample
    return latent


def test_a_class_is_a_token_and_guidance_leads_away_from_the_class_that_means_none(classes: Path) -> None:
    model, unet = load(classes), UNet2DConditionModel.from_pretrained(classes / "unet").eval()
    from safetensors.torch import load_file

    table = load_file(classes / "class_embedder" / "diffusion_pytorch_model.safetensors")["embedding.weight"]

    def forward(latent: Tensor, timestep: Tensor) -> Tensor:
        with torch.no_grad():
            wanted, none = (unet(latent, timestep, encoder_hidden_states=table[None, i : i + 1]).sample for i in (3, 5))
        return none + 2.0 * (wanted - none)

    want = by_hand(model, forward, clip=False)
    for prompt in ("cat", "3"):
        got, images = ours(model, [prompt], guidance=2.0)
        torch.testing.assert_close(got, want, rtol=0, atol=SAME * max(1, want.abs().max().item()))
    vae = VQModel.from_pretrained(classes / "vqvae").eval()
    with torch.no_grad():
        decoded = vae.decode(want / vae.config.scaling_factor).sample
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-3)


def test_labels_are_what_the_unet_embeds(labels: Path) -> None:
    model, unet = load(labels), UNet2DModel.from_pretrained(labels / "unet").eval()

    def forward(latent: Tensor, timestep: Tensor) -> Tensor:
        with torch.no_grad():
            return unet(latent, timestep, class_labels=torch.tensor([4])).sample

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    want = model.noise(0)[None]
    for timestep in scheduler.timesteps:
        want = scheduler.step(forward(want, timestep), timestep, want).prev_sample
    got, _ = ours(model, ["4"])
    torch.testing.assert_close(got, want, rtol=0, atol=SAME * max(1, want.abs().max().item()))
    assert (got - ours(model, ["1"])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["6", "-1", "dog", ""])
def test_a_class_that_is_none_is_refused(classes: Path, prompt: str) -> None:
    with pytest.raises(InvalidInput, match="0 to 5") as caught:
        load(classes).encode([prompt])
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("family", ["ddpm", "ldm", "labels"])
def test_a_family_without_guidance_says_so(family: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(family))
    assert not model.prompts.guides
    with pytest.raises(InvalidInput, match="guidance must be 1") as caught:
        model.negative([""])
    assert caught.value.param == "guidance"


def test_an_unconditional_model_takes_no_prompt(ldm: Path) -> None:
    with pytest.raises(InvalidInput, match="unconditional") as caught:
        load(ldm).encode(["a cat"])
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_schedules_and_counts_them(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    model = load(folder)
    segments = (Segment(partial=(1,), branch=2),) * 5
    cached = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", STEPS), segments=segments))
    condition = model.encode([FAMILIES[family]])
    got = generate(model.network, cached, model.noise(0)[None], condition)
    want, _ = ours(model, [FAMILIES[family]])
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() > 1e-4, "a cached step is not a full one"
    assert 5 / STEPS < model.macs.relative(cached, model.compile(teacher(model.ref, model.solver("ddim", STEPS)))) < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_works_from_the_command_line(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(family)
    prompt = ["--prompt", FAMILIES[family]] if FAMILIES[family] else []
    out = tmp_path / "out.png"
    made = CliRunner().invoke(app, ["generate", "--model", str(folder), "--steps", "3", *prompt, "--out", str(out)])
    assert made.exit_code == 0, made.output
    assert out.stat().st_size > 0
    counted = CliRunner().invoke(app, ["macs", str(folder), "--json"])
    said, model = json.loads(counted.output), load(folder)
    assert said["full"]["macs"] == model.macs.full.macs
    assert {int(branch): value["macs"] for branch, value in said["partial"].items()} == {
        branch: value.macs for branch, value in model.macs.partial.items()
    }


def without(folder: Path, component: str, place: Path) -> Path:
    shutil.copytree(folder, place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, component: [None, None]}))
    return place


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_component_is_refused_by_its_name(sdxl: Path, component: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=component):
        load(without(sdxl, component, tmp_path / "less"))


def test_a_unet_that_attends_to_nothing_there_is_refused(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="class_embedder"):
        load(without(classes, "class_embedder", tmp_path / "less"))


def test_an_unknown_block_is_named(tiny_config: Mapping[str, Any], tmp_path: Path) -> None:
    config = {**tiny_config, "_class_name": "UNet2DConditionModel", "down_block_types": ["KDownBlock2D", "DownBlock2D"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = CliRunner().invoke(app, ["macs", str(tmp_path / "config.json")])
    assert refused.exit_code != 0
    assert "KDownBlock2D" in refused.output


# parameters: as published with the weights
REAL = {"sdxl": ((4, 128, 128), 77, 2_567_463_684), "ddpm-cifar10": ((3, 32, 32), 0, 35_746_307)}
REAL |= {"ddpm-lsun": ((3, 256, 256), 0, 113_673_219), "ldm-celebahq": ((3, 64, 64), 0, 274_056_163)}


def counted(name: str) -> tuple[dict[str, Any], StepMacs]:
    config = json.loads((DATA / f"{name}-unet.json").read_text())
    latent, tokens, _ = REAL[name]
    return config, count_steps(config, latent, tokens)


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_are_counted_as_torch_counts_diffusers_own_forward(name: str) -> None:
    config, macs = counted(name)
    latent, tokens, parameters = REAL[name]
    assert macs.parameters == parameters
    unet, one = meta_network(config), example(config, tokens, latent)
    named = {"encoder_hidden_states": one.context} if tokens else {}
    if one.pooled is not None:
        named["added_cond_kwargs"] = {"text_embeds": one.pooled, "time_ids": one.sizes}  # type: ignore[dict-item]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        unet(torch.empty(1, *latent, device="meta"), torch.zeros(1, device="meta"), **named)
    assert macs.full.macs == flops.get_total_flops() // 2
    costs = [macs.partial[branch].macs for branch in sorted(macs.partial)]
    assert costs == sorted(set(costs))
    assert costs[-1] < macs.full.macs


def test_models_of_pixels_and_of_no_texts_make_their_own_size_only(ddpm: Path, ldm: Path, sdxl: Path) -> None:
    assert [load(folder).fixed_size for folder in (ddpm, ldm, sdxl)] == [True, True, False]
