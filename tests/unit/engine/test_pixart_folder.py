"""PixArt folders: they load, draw what diffusers draws, ride in waves with masks of their own; what does not fit is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from model_folders import change
from places import ROOT
from torch import Tensor
from typer.testing import CliRunner

from engine.__main__ import app
from engine.adapters import LoraReader
from engine.compiling import warm
from engine.denoising_task import DenoisingTask
from engine.folder_check import check
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from engine.policy import FCFS
from engine.sampler import generate
from engine.waves import Waves
from engine.weights import networks
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Blocks, Schedule, Segment, teacher

SAME = 1e-4
PROMPTS = ["a Red cat", "a blue dog and a red cat and a dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pixart")
    told = {"use_additional_conditions": True}
    return {
        "alpha": model_folders.pixart(root / "alpha"),
        "alpha-1024": model_folders.pixart(root / "alpha-1024", **told),
        "sigma": model_folders.pixart(root / "sigma", PixArtSigmaPipeline, num_layers=2),
    }


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Model:
    torch.set_num_threads(1)
    return load(folders["alpha"])


def drawn(model: Model, prompts: list[str], steps: int, size: ImageSize | None = None) -> Tensor:
    """Latents (n, c, h, w) of full steps of the folder's own solver, from the noise of seeds 0, 1, …."""
    noise = torch.stack([model.noise(seed, size) for seed in range(len(prompts))])
    program = model.compile(teacher(model.ref, model.solver("dpmsolver++", steps)))
    return generate(
        *(model.network, program, noise),
        model.encode(prompts, size=size),
        model.negative(["a dog"] * len(prompts), size=size),
        4.5,
    )


def same(got: Tensor, want: Tensor) -> None:
    """To 1e-5 of the largest: at this noise, what predicts none of it has latents of some hundreds."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("alpha", PixArtAlphaPipeline, None),
        ("sigma", PixArtSigmaPipeline, ImageSize(24, 16)),
    ],
)
@torch.inference_mode()
def test_all_full_steps_are_diffusers_pipeline(folders: dict[str, Path], name: str, kind: Any, size: ImageSize | None) -> None:
    """Its latents and images, at the very size that is asked for, from the same noise."""
    pipeline, model = kind.from_pretrained(folders[name]), load(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    height, width = size or model.image_size
    given = {"negative_prompt": ["a dog"] * 2, "num_inference_steps": 6, "height": height, "width": width}
    given |= {"latents": torch.stack([model.noise(seed, size) for seed in range(2)]), "use_resolution_binning": False}
    made = [pipeline(PROMPTS, **given, output_type=kind_of).images for kind_of in ("latent", "pt")]
    got = drawn(model, PROMPTS, 6, size)
    same(got, made[0])
    torch.testing.assert_close(model.decode(got), made[1], rtol=0, atol=SAME)


@torch.inference_mode()
def test_alpha_of_1024_pixels_is_told_the_size_as_its_pipeline_tells_it(folders: dict[str, Path]) -> None:
    """The pipeline does so for latents of 128 × 128 alone, so it is told that these are."""
    pipeline, model = PixArtAlphaPipeline.from_pretrained(folders["alpha-1024"]), load(folders["alpha-1024"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_to_config(sample_size=128)
    noise = torch.stack([model.noise(seed) for seed in range(2)])
    given = {"negative_prompt": ["a dog"] * 2, "num_inference_steps": 3, "height": 16, "width": 16, "latents": noise}
    want = pipeline(PROMPTS, **given, use_resolution_binning=False, output_type="latent").images
    same(drawn(model, PROMPTS, 3), want)
    other = model.encode(PROMPTS, size=ImageSize(16, 32))
    assert other.sizes is not None
    assert torch.equal(other.sizes[0], torch.tensor([16, 32, 0.5]))


def test_a_model_knows_what_it_reads_and_at_which_sizes(folders: dict[str, Path], model: Model) -> None:
    assert (model.ref.family, model.latent_shape, model.fixed_size) == ("pixart-transformer2d", (4, 8, 8), False)
    assert (model.prompts.tokens, load(folders["sigma"], weights=False).prompts.tokens) == (120, 300)
    assert (model.size_multiple, model.own_solver, model.notices) == (4, "dpmsolver++", ())
    with pytest.raises(InvalidInput, match="multiples of 4"):
        model.other_size(ImageSize(18, 16))


@torch.inference_mode()
def test_images_of_several_texts_sizes_and_branches_share_memory_and_end_as_alone(model: Model) -> None:
    segments = [
        (Segment.reusing(Blocks(1, 0), (1, 2)),) * 2,
        (Segment.reusing(Blocks(0, 2), (1,)), Segment.reusing(Blocks(2, 1), (2,))),
        (Segment(),) * 6,
    ]
    other = ImageSize(16, 24)
    waves = Waves(model.network, model.slots(12, [other]), FCFS(6))
    jobs = list[tuple[DenoisingTask, Schedule, str, int | None, ImageSize | None]]()
    for seed, (size, prompt) in enumerate([(None, PROMPTS[0]), (None, PROMPTS[1]), (other, ""), (None, ""), (other, "a cat")]):
        schedule = Schedule(model=model.ref, solver=model.solver("dpmsolver++", 6), segments=segments[seed % 3])
        guidance = 4.5 if seed != 3 else None
        task = DenoisingTask(model.compile(schedule), guidance, size)
        jobs.append((task, schedule, prompt, seed, size))
        waves.add(
            task,
            model.noise(seed, size),
            model.encode([prompt], size=size),
            model.negative(["red"], size=size) if guidance else None,
        )
        waves.tick()
    while waves.tick():
        pass
    for task, schedule, prompt, seed, size in jobs:
        alone = generate(
            *(model.network, model.compile(schedule), model.noise(seed, size)[None], model.encode([prompt], size=size)),
            model.negative(["red"], size=size) if task.guidance else None,
            task.guidance or 1.0,
        )
        assert task.latent is not None
        same(task.latent, alone[0])


def test_a_slot_holds_a_residual_a_text_and_its_mask(folders: dict[str, Path], model: Model) -> None:
    latent, residual, text, mask = 2 * 4 * 4 * 8 * 8, 4 * 16 * 24, 4 * 120 * 16, 128
    assert model.slot_bytes() == latent + residual + text + mask
    assert load(folders["alpha-1024"], weights=False).slot_bytes() == model.slot_bytes() + 64


def test_an_old_folder_calls_it_by_the_name_of_all_transformers(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folders["alpha"], tmp_path / "old"))
    change(old / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    more = {"num_vector_embeds": None, "double_self_attention": False, "only_cross_attention": False}
    change(old / "transformer" / "config.json", _class_name="Transformer2DModel", **more)
    check(old)
    assert torch.equal(drawn(load(old), ["a cat"], 2), drawn(model, ["a cat"], 2))


def test_it_can_tell_of_itself_without_weights(folders: dict[str, Path]) -> None:
    loaded, told = (load(folders["alpha"], dtype="float16", weights=weights) for weights in (True, False))
    assert (told.macs, told.slot_bytes(), told.ref) == (loaded.macs, loaded.slot_bytes(), loaded.ref)
    assert told.weight_bytes == loaded.weight_bytes, "T5's wide weights counted"


def test_a_text_encoder_may_be_elsewhere(folders: dict[str, Path], model: Model) -> None:
    """No second device here: where it was asked for, and that a condition goes to where the network is."""
    assert torch.equal(load(folders["alpha"], text_device="cpu").encode(PROMPTS).tensors[0], model.encode(PROMPTS).tensors[0])
    with pytest.raises(InvalidInput, match="torch knows no device 'tpu9000'") as caught:
        load(folders["alpha"], text_device="tpu9000")
    assert caught.value.param == "text_device"
    assert replace(model, texts_elsewhere=True).weight_bytes == model.weight_bytes - sum(
        weight.nbytes for network in networks(model.prompts) for weight in (*network.parameters(), *network.buffers())
    )
    there = replace(model, device=torch.device("meta"))
    assert {tensor.device.type for tensor in there.here(model.encode(PROMPTS)).tensors} == {"meta"}


def test_what_is_compiled_runs_for_any_rows(folders: dict[str, Path]) -> None:
    assert warm(load(folders["sigma"]), 3, images=(1,)).graphs == 0, "nothing is compiled here, and every kind of step runs"


def test_it_works_from_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    out, folder = tmp_path / "out.png", str(folders["alpha"])
    long = "a red cat and a blue dog, " * 40
    made = CliRunner().invoke(
        app, ["generate", "--model", folder, "--prompt", long, "--steps", "3", "--size", "24x16", "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    assert "the model reads 120 tokens and ignored the end" in made.output
    assert out.stat().st_size > 0
    for option, value in (("--prompt-chunks", "2"), ("--prompt-syntax", "webui")):
        refused = CliRunner().invoke(app, ["generate", "--model", folder, "--prompt", "a cat", option, value])
        assert refused.exit_code != 0
        assert "T5" in refused.output
    counted = CliRunner().invoke(app, ["macs", folder, "--branch", "1+0"])
    assert counted.exit_code == 0, counted.output


def another_kind(root: Path) -> None:
    change(root / "transformer" / "config.json", norm_type="ada_norm_zero")


def a_clip(root: Path) -> None:
    change(root / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])


def no_text_encoder(root: Path) -> None:
    change(root / "model_index.json", text_encoder=[None, None])


def a_second_text_encoder(root: Path) -> None:
    change(root / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (another_kind, "norm_type: 'ada_norm_zero' in the transformer config is not supported"),
        (a_clip, "text_encoder is CLIPTextModel, this version runs T5EncoderModel"),
        (no_text_encoder, "text_encoder is None, this version runs T5EncoderModel"),
        (a_second_text_encoder, "text_encoder_2 is CLIPTextModelWithProjection, this version runs none there"),
    ],
)
def test_what_is_no_pixart_is_refused_by_name_before_torch_is_asked(
    folders: dict[str, Path], tmp_path: Path, spoil: Any, text: str
) -> None:
    spoilt = Path(shutil.copytree(folders["alpha"], tmp_path / "spoilt"))
    spoil(spoilt)
    for refusing in (check, load):
        with pytest.raises(Unsupported) as caught:
            refusing(spoilt)
        assert text in f"{caught.value.param}: {caught.value}"


def test_loras_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(Unsupported, match="LoRAs of a transformer are not supported"):
        LoraReader(folders["alpha"])


def test_a_look_at_its_folder_needs_no_torch(folders: dict[str, Path]) -> None:
    folder = str(folders["alpha"])
    looking = f"import sys; from engine.folder_check import check; check({folder!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", looking], cwd=ROOT, check=True)
