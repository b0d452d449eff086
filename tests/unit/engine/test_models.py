"""Loading says what is wrong by name; noise is a function of the seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.decoders import Autoencoder
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from registry.errors import InvalidInput, NotFound, Unsupported
from registry.schedule import ModelRef, Schedule, Segment, teacher

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline folder with the right names and a few bytes for weights."""
    for component in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text("{}")
    (tmp_path / "unet" / "config.json").write_text('{"sample_size": 8, "cross_attention_dim": 512}')
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    return tmp_path


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere") as caught:
        load(tmp_path / "nowhere")
    assert caught.value.param == "model"


def test_a_folder_without_its_weights_is_not_found(folder: Path) -> None:
    with pytest.raises(NotFound, match="unet") as caught:
        load(folder)
    assert caught.value.param == "model"


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_an_index_that_is_no_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text)
    with pytest.raises(Unsupported, match=r"model_index\.json") as caught:
        load(folder)
    assert caught.value.param == "model"


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [["diffusers", "SomethingElse"], None])
def test_a_component_of_another_class_is_named(folder: Path, component: str, value: list[str] | None) -> None:
    index = {name: entry for name, entry in {**INDEX, component: value}.items() if entry is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(Unsupported, match=component) as caught:
        load(folder)
    assert caught.value.param == "model"


def test_an_unknown_dtype_is_named(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="float64") as caught:
        load(folder, dtype="float64")
    assert caught.value.param == "dtype"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "toaster", "cuda:x", "meta", "mps", "xpu", "xla"])
def test_a_device_that_is_not_there_is_named(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match=device) as caught:
        load(folder, device=device)
    assert caught.value.param == "device"


def test_the_bundled_models_shape(model: Model) -> None:
    assert model.ref.name == "emoji64"
    assert model.ref.family == "unet2d-condition"
    assert model.latent_shape == (4, 16, 16)
    assert model.image_size == (64, 64)
    assert model.network.branches == 8
    context = model.encode(["cat", "a very long prompt " * 50]).context
    assert context is not None
    assert context.shape == (2, 16, 128)


def test_noise_is_a_function_of_the_seed_alone(model: Model) -> None:
    torch.manual_seed(1)
    first = model.noise(42)
    torch.manual_seed(2)
    assert torch.equal(first, model.noise(42))
    assert not torch.equal(first, model.noise(43))
    assert first.shape == model.latent_shape
    assert first.dtype == torch.float32


def test_noise_is_drawn_as_every_diffusers_user_draws_it(model: Model) -> None:
    want = torch.randn(1, *model.latent_shape, generator=torch.Generator("cpu").manual_seed(42))[0]
    assert torch.equal(model.noise(42), want)


def test_noise_of_another_size_is_other_noise_of_its_shape(model: Model) -> None:
    wide, high = model.noise(42, ImageSize(64, 128)), model.noise(42, ImageSize(128, 64))
    assert (wide.shape, high.shape) == ((4, 16, 32), (4, 32, 16))
    assert model.noise(42, model.other_size(ImageSize(64, 64))).equal(model.noise(42))


def test_sizes_that_the_model_cannot_make_are_refused_by_what_it_can(model: Model) -> None:
    assert model.size_multiple == 32
    assert model.other_sizes([ImageSize(64, 64), ImageSize(32, 96), ImageSize(32, 96)]) == [(32, 96)]
    for size in (ImageSize(64, 80), ImageSize(48, 64)):
        with pytest.raises(InvalidInput, match=f"multiples of 32 for this model, got {size}") as caught:
            model.other_size(size)
        assert caught.value.param == "size"
    with pytest.raises(InvalidInput, match="makes 64x64 only"):
        replace(model, fixed_size=True).other_size(ImageSize(96, 96))
    assert replace(model, fixed_size=True).other_size(ImageSize(64, 64)) is None


@pytest.mark.parametrize("text", ["512", "512×768", "0x64", "64x064", "-64x64", "64 x 64", "999999x64", "64x64x3", "auto", ""])
def test_a_size_is_written_in_one_way(text: str) -> None:
    with pytest.raises(InvalidInput, match="WIDTHxHEIGHT") as caught:
        ImageSize.parse(text)
    assert caught.value.param == "size"
    size = ImageSize.parse("512x768")
    assert (size.width, size.height, str(size)) == (512, 768, "512x768")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(model: Model, seed: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        model.noise(seed)
    assert caught.value.param == "seed"


def test_the_largest_seed_works(model: Model) -> None:
    assert torch.isfinite(model.noise(2**63 - 1)).all()


def test_decoded_images_are_in_range_whatever_the_latents(model: Model) -> None:
    images = model.decode(20 * torch.stack([model.noise(0), model.noise(1)]))
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.device.type == "cpu"
    assert 0 <= images.min() < images.max() <= 1


def test_decoding_is_diffusers_decoding(model: Model) -> None:
    latents = torch.stack([model.noise(0)])
    assert isinstance(model.decoder, Autoencoder)
    vae = model.decoder.vae
    with torch.no_grad():
        want = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(model.decode(latents), ((want + 1) / 2).clamp(0, 1), rtol=0, atol=1e-6)


def test_a_prompt_is_encoded_the_same_in_any_batch(model: Model) -> None:
    together = model.encode(["cat", "red heart", ""]).context
    assert together is not None
    for i, prompt in enumerate(["cat", "red heart", ""]):
        torch.testing.assert_close(together[i : i + 1], model.encode([prompt]).context, rtol=0, atol=1e-5)


def test_a_schedule_made_for_other_weights_is_refused(model: Model) -> None:
    other = ModelRef(name="emoji64", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
    with pytest.raises(InvalidInput, match=r"made for other weights .*, called emoji64") as caught:
        model.compile(teacher(other, model.solver("ddim", 10)))
    assert caught.value.param == "model.fingerprint"


def test_a_schedule_with_a_branch_past_the_unet_is_refused(model: Model) -> None:
    segments = (Segment(partial=(1,), branch=9),) * 5
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 10), segments=segments)
    with pytest.raises(InvalidInput, match="1 to 8") as caught:
        model.compile(schedule)
    assert caught.value.param == "segments.0.branch"
