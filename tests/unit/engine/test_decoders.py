"""Decoders: each class is diffusers' own, and what overflows in a narrow type is decoded in a wider one or is no image."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    ModelMixin,
    StableDiffusionPipeline,
)
from places import ROOT
from torch import Tensor
from typer.testing import CliRunner

from engine import loading
from engine.__main__ import app
from engine.decoders import Autoencoder, Pixels, to_images, to_levels
from engine.images import levels
from engine.loading import load
from engine.model import Model
from engine.sampler import generate
from evaluation import psnr
from registry.errors import Unsupported
from registry.schedule import teacher

LEVEL = 1 / 255
STEPS = 4


def tiny(**changes: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    sizes = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    return AutoencoderTiny(**{**sizes, **blocks, **changes})


def asymmetric(**changes: Any) -> AsymmetricAutoencoderKL:
    """Its decoder is wider than its encoder, and has more layers."""
    torch.manual_seed(0)
    down = {"down_block_types": ("DownEncoderBlock2D",) * 3, "down_block_out_channels": (8, 8, 8)}
    up = {"up_block_types": ("UpDecoderBlock2D",) * 3, "up_block_out_channels": (8, 16, 24), "layers_per_up_block": 2}
    return AsymmetricAutoencoderKL(**{**down, **up, "norm_num_groups": 4, "scaling_factor": 0.3, **changes})


CLASSES: dict[str, Callable[..., ModelMixin]] = {"AutoencoderTiny": tiny, "AsymmetricAutoencoderKL": asymmetric}


@pytest.fixture
def narrow(tmp_path: Path) -> Model:
    """The bundled model in float16, its decoder too."""
    return load(model_folders.scaled(model_folders.emoji(tmp_path / "narrow"), 1.0), dtype="float16")


def autoencoder(model: Model) -> Autoencoder:
    assert isinstance(model.decoder, Autoencoder)
    return model.decoder


def types_of(model: Model) -> set[torch.dtype]:
    return {weight.dtype for weight in autoencoder(model).vae.parameters()}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("engine")]


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_is_diffusers_pipelines_with_the_same_autoencoder(tmp_path: Path, name: str) -> None:
    folder = model_folders.emoji(tmp_path / "model", CLASSES[name]())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    model = load(folder)
    noise = torch.stack([model.noise(7)])
    want = pipeline("red heart", guidance_scale=3.0, num_inference_steps=STEPS, latents=noise.clone(), output_type="np").images
    program = model.compile(teacher(model.ref, model.solver("ddim", STEPS)))
    got = model.decode(generate(model.network, program, noise, model.encode(["red heart"]), model.negative([""]), 3.0))
    assert got.shape[2:] == model.image_size == (pipeline.vae_scale_factor * 16,) * 2
    assert psnr(float(((got.permute(0, 2, 3, 1).numpy() - want) ** 2).mean())) > 80
    assert want.std() > 0.01, "there is something to see"


def test_a_tiny_autoencoder_enlarges_as_it_says(tmp_path: Path) -> None:
    model = load(model_folders.emoji(tmp_path / "model", tiny(upsampling_scaling_factor=3)))
    assert model.image_size == (16 * 9, 16 * 9)
    assert model.decode(model.noise(0)[None]).shape == (1, 3, *model.image_size)


@pytest.mark.parametrize("name", CLASSES)
def test_latents_of_other_channels_are_refused(tmp_path: Path, name: str) -> None:
    folder = model_folders.emoji(tmp_path / "model", CLASSES[name](latent_channels=8))
    with pytest.raises(Unsupported, match="latents of vae have 8 channels"):
        load(folder)


def test_an_autoencoder_of_another_class_is_refused_by_name(tmp_path: Path) -> None:
    folder = model_folders.emoji(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "ConsistencyDecoderVAE"]}))
    with pytest.raises(Unsupported, match="vae is ConsistencyDecoderVAE, this version runs AsymmetricAutoencoderKL or"):
        load(folder)


@pytest.mark.parametrize("said", [None, True, False])
def test_a_decoder_of_stable_diffusion_xl_is_upcast_unless_its_configuration_says_no(
    tmp_path: Path, tiny_config: dict[str, Any], said: bool | None
) -> None:
    folder = model_folders.sdxl(tmp_path / "xl", tiny_config)
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["force_upcast"]
    (folder / "vae" / "config.json").write_text(json.dumps(config if said is None else {**config, "force_upcast": said}))
    model = load(folder, dtype="float16")
    assert types_of(model) == {torch.float16 if said is False else torch.bfloat16}
    assert not model.decoder.overflowed, "the folder asks for it"


@pytest.mark.parametrize("vae", [None, *CLASSES])
def test_a_decoder_that_overflows_decodes_in_bfloat16_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, vae: str | None
) -> None:
    folder = model_folders.emoji(tmp_path / "model", CLASSES[vae]() if vae else None)
    layer = {"AutoencoderTiny": "decoder.layers.0"}.get(vae or "", "decoder.up_blocks.1.resnets.0.conv2")
    model_folders.scaled(folder, 6e4 if vae else 3e4, layer)
    wide, model = load(folder), load(folder, dtype="float16")
    autoencoder(wide).vae.to(torch.float16).to(torch.bfloat16)
    latents = torch.stack([wide.noise(0), wide.noise(1)])
    assert not model.decode_later(latents).finite.any(), "each image overflows in float16"
    assert not model.decoder.overflowed
    for _ in range(2):
        torch.testing.assert_close(model.decode(latents), wide.decode(latents), rtol=0, atol=LEVEL)
    assert model.decoder.overflowed
    assert types_of(model) == {torch.bfloat16}
    assert model.decode_later(latents).finite.all(), "at once"
    assert warnings_of(caplog) == ["the decoder overflows in float16: from now on it runs in bfloat16"]


def test_only_the_image_that_overflows_is_decoded_again(narrow: Model) -> None:
    latents = torch.stack([narrow.noise(0), 3e4 * narrow.noise(1), narrow.noise(2)])
    first = narrow.decode_later(latents)
    assert first.finite.tolist() == [True, False, True]
    assert not first.images[1].any(), "8 bits of nothing"
    images, finite = narrow.decode_again(latents)
    assert torch.equal(images[::2], first.images[::2]), "still those of float16"
    assert torch.equal(images[1:2], narrow.decode_later(latents[1:2]).images)
    assert finite.all()


def test_what_overflows_in_float32_too_is_no_image_and_ruins_no_other(narrow: Model) -> None:
    latents = torch.stack([narrow.noise(0), torch.full_like(narrow.noise(0), 3e38)])
    for _ in range(2):
        images = narrow.decode(latents)
        assert torch.isfinite(images[0]).all()
        assert torch.isnan(images[1]).all()


def test_a_float32_decoder_has_nothing_wider(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    latents = torch.full_like(model.noise(0), 3e38)[None]
    assert torch.isnan(model.decode(latents)).all()
    assert not model.decoder.overflowed
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("dtype", "types"), [("float16", ["float16", "bfloat16"]), ("bfloat16", ["bfloat16"])])
def test_types_widen_one_after_the_other_until_nothing_overflows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str, types: list[str]
) -> None:
    model = load(model_folders.emoji(tmp_path / "model"), dtype=dtype)
    wide = load(model_folders.emoji(tmp_path / "wide"))
    for name in types:
        autoencoder(wide).vae.to(getattr(torch, name))
    autoencoder(wide).vae.float()
    for vae in (autoencoder(model).vae, autoencoder(wide).vae):
        vae.decoder.conv_in.register_forward_pre_hook(narrow_inputs_are_ruined)
    latents = model.noise(0)[None]
    torch.testing.assert_close(model.decode(latents), wide.decode(latents), rtol=0, atol=LEVEL)
    assert types_of(model) == {torch.float32}
    wider = [*types[1:], "float32"]
    said = [f"the decoder overflows in {a}: from now on it runs in {b}" for a, b in zip(types, wider, strict=True)]
    assert warnings_of(caplog) == said


def narrow_inputs_are_ruined(_: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """bfloat16 has float32's range, so what is not finite in it alone has to be made."""
    (given,) = inputs
    return (given if given.dtype == torch.float32 else given * math.nan,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_latent_that_is_not_finite_is_not_the_decoders_fault(narrow: Model, value: float) -> None:
    latents = torch.stack([narrow.noise(0), torch.full_like(narrow.noise(0), value)])
    images = narrow.decode(latents)
    assert torch.isnan(images).flatten(1).all(1).tolist() == [False, True]
    assert types_of(narrow) == {torch.float16}


def test_a_codebook_does_not_hide_latents_that_overflow(tmp_path: Path) -> None:
    """Whatever is not finite has a nearest word too, so the pixels alone look well."""
    folder = model_folders.ldm(tmp_path / "ldm")
    wide, model = load(folder), load(folder, dtype="float16")
    autoencoder(wide).vae.to(torch.float16).to(torch.bfloat16)
    latents = 3e4 * torch.stack([wide.noise(0)]).sign()  # times two: the scaling factor is a half
    latents[0, 0] *= 2
    torch.testing.assert_close(model.decode(latents), wide.decode(latents), rtol=0, atol=LEVEL)
    assert model.decoder.overflowed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_that_is_not_finite_is_not_clamped_to_white(value: float, channels: int) -> None:
    latents = torch.zeros(3, channels, 4, 4)
    latents[1, -1, 2, 3] = value
    images, finite = to_images(Pixels(), latents)
    assert images.shape == (3, 3, 4, 4)
    assert finite.tolist() == to_levels(Pixels(), latents).finite.tolist() == [True, False, True]
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_from_the_device_are_those_of_the_images(channels: int) -> None:
    """For every value that lies on a level, between two, or past the ends, and for those next to it."""
    pixels = torch.arange(-40, 4 * 255 + 41).double() / (4 * 255)  # a quarter of a level apart
    middle = (2 * pixels - 1).float()
    values = torch.cat([middle, middle.nextafter(torch.tensor(9.0)), middle.nextafter(torch.tensor(-9.0)), torch.zeros(1)])
    latents = (
        values.view(1, channels, -1, 2) if channels == 1 else torch.stack([values, values.flip(0), -values]).view(1, 3, -1, 2)
    )
    images, seen = to_images(Pixels(), latents), to_levels(Pixels(), latents)
    assert seen.images.dtype == torch.uint8
    assert torch.equal(seen.images, levels(images.images))
    assert set(seen.images.flatten().tolist()) == set(range(256))
    assert seen.images.is_contiguous()


def test_weights_that_a_narrow_type_cannot_hold_run_in_a_wider_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = model_folders.scaled(model_folders.emoji(tmp_path / "model"), 1e6)
    wide, model = load(folder), load(folder, dtype="float16")
    autoencoder(wide).vae.to(torch.bfloat16)
    latents = wide.noise(0)[None]
    assert torch.equal(model.decode(latents), wide.decode(latents))
    assert model.decoder.overflowed
    assert model.network.dtype == torch.float16
    assert warnings_of(caplog) == ["vae has weights that float16 cannot hold: it runs in bfloat16"]


def test_memory_for_half_of_a_wider_decoder_leaves_the_narrow_one(narrow: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = autoencoder(narrow).vae

    plain = torch.nn.Module.to

    def exhausted(module: torch.nn.Module, dtype: torch.dtype) -> None:
        if dtype == torch.bfloat16:
            plain(vae.decoder.up_blocks, dtype)
            raise torch.OutOfMemoryError("no memory")
        plain(module, dtype)

    monkeypatch.setattr(torch.nn.Module, "to", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        narrow.decode(3e4 * narrow.noise(0)[None])
    assert types_of(narrow) == {torch.float16}
    assert not narrow.decoder.overflowed
    assert torch.isfinite(narrow.decode(narrow.noise(0)[None])).all()


def test_levels_are_rounded_and_only_of_pixels_that_are_finite() -> None:
    assert levels(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)).tolist() == [[[0, 128, 255]]]
    for value in (math.nan, math.inf):
        pixels = torch.zeros(2, 3, 2, 2)
        pixels[1, 2, 1, 1] = value
        with pytest.raises(FloatingPointError, match="not finite"):
            levels(pixels)


def called(out: Path, folder: Path, *args: str) -> Any:
    arguments = ["generate", "--prompt", "cat", "--model", str(folder), "--steps", "4", "--out", str(out), *args]
    return CliRunner().invoke(app, arguments)


def test_an_image_made_by_hand_is_decoded_in_a_wider_type_and_says_so(tmp_path: Path) -> None:
    folder = model_folders.scaled(model_folders.emoji(tmp_path / "model"), 3e4)
    made = {dtype: called(tmp_path / f"{dtype}.png", folder, "--dtype", dtype) for dtype in ("float16", "float32")}
    assert [one.exit_code for one in made.values()] == [0, 0], made
    assert "decoder    in a wider type, because it overflowed in float16" in made["float16"].stdout
    assert "decoder" not in made["float32"].stdout
    assert made["float16"].stderr == ""


def test_by_hand_a_decoder_for_which_no_type_is_wide_enough_is_one_line_and_no_file(tmp_path: Path) -> None:
    folder, out = model_folders.scaled(model_folders.emoji(tmp_path / "model"), 1e38), tmp_path / "out.png"
    command = [sys.executable, "-m", "engine", "generate", "--prompt", "cat", "--model", folder, "--steps", "4", "--out", out]
    done = subprocess.run([*command, "--dtype", "float16"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: no image of seed 0: its pixels are not finite, decoded in float32 either\n"
    assert not out.exists()


def test_by_hand_only_images_that_are_finite_become_files(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SecondFails(Pixels):
        def __call__(self, latents: Tensor) -> Tensor:
            images = latents[:, :3].clone()
            images[1] = math.inf
            return images

    monkeypatch.setattr(loading, "load", lambda *_, **__: replace(model, decoder=SecondFails()))
    result = called(tmp_path / "out.png", ROOT, "--num-images", "3", "--seed", "7")
    assert result.exit_code == 1
    assert result.stderr == "error: no image of seed 8: its pixels are not finite, decoded in float32 either\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out-1.png", "out-3.png"]


def test_by_hand_a_latent_that_overflows_is_said_with_what_to_do(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: model)
    monkeypatch.setattr("engine.sampler.generate", lambda network, program, noise, *_: noise * math.nan)
    result = called(tmp_path / "out.png", ROOT, "--dtype", "float16")
    assert result.exit_code == 1
    assert result.stderr == "error: no image of seed 0: its latent is not finite in float16; use bfloat16 or float32\n"
    assert list(tmp_path.iterdir()) == []
