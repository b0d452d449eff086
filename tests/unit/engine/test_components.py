"""What loads can draw: a folder whose parts do not fit, or are not whole, is refused by name when it is loaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from places import ROOT
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.loading import load
from engine.macs import meta_network
from registry.errors import FlexiError, NotFound, Unsupported

WORDS = 1831  # of the bundled tokenizer, which cuts at 16
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12 + 6 * 4,
    "cross_attention_dim": 16,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    """A small text-to-image folder, and beside it a second text encoder and a table of classes that its index does not name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fit") / "whole"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
    text = CLIPTextConfig(vocab_size=WORDS, max_position_embeddings=16, projection_dim=12, **ends, **sizes)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(text).save_pretrained(folder / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ROOT / "models" / "emoji64" / "tokenizer", folder / name)
    (folder / "class_embedder").mkdir()
    (folder / "class_embedder" / "config.json").write_text("{}")
    save_file({"table": torch.randn(6, 8)}, folder / "class_embedder" / "diffusion_pytorch_model.safetensors")
    UNet2DConditionModel(**{**tiny_config, "cross_attention_dim": 8}).save_pretrained(folder / "unet")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(folder / "vae")
    DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    index = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "spoilt"))


def change(file: Path, **changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(said))
    return said


SDXL = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
CLASSES = {"text_encoder": None, "tokenizer": None, "class_embedder": ["flexiffusion", "ClassEmbedder"]}


def refused(folder: Path, unet: Mapping[str, Any] = {}, index: Mapping[str, Any] = {}) -> FlexiError:
    """The error of loading it with these changes; the weights are not looked at before."""
    change(folder / "unet" / "config.json", **unet)
    change(folder / "model_index.json", **index)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    with pytest.raises(Unsupported) as caught:
        load(folder)
    return caught.value


def test_the_folder_is_whole_until_it_is_spoilt(folder: Path) -> None:
    assert load(folder).encode(["cat"]).context is not None
    change(folder / "model_index.json", **CLASSES)
    assert load(folder).encode(["3"]).context is not None


@pytest.mark.parametrize(
    ("unet", "param"),
    [
        ({"in_channels": 10}, "in_channels"),
        ({"in_channels": 8}, "in_channels"),  # InstructPix2Pix
        ({"out_channels": 8}, "in_channels"),  # learned variance
        ({"in_channels": 3, "out_channels": 3}, "in_channels"),  # the autoencoder has 4
        ({"num_class_embeds": 1000}, "num_class_embeds"),  # the x4 upscaler
        ({"cross_attention_dim": 6}, "cross_attention_dim"),
        ({**ADDED, "cross_attention_dim": 8}, "model"),  # no second text encoder
    ],
)
def test_what_would_fail_at_every_image_is_refused_at_load_alone(folder: Path, unet: dict[str, Any], param: str) -> None:
    error = refused(folder, unet)
    assert error.param == param
    assert param in error.message
    assert meta_network(json.loads((folder / "unet" / "config.json").read_text()))


@pytest.mark.parametrize(
    ("unet", "param"),
    [
        ({"cross_attention_dim": 8}, "cross_attention_dim"),  # two encoders of 8 make 16
        ({**ADDED, "projection_class_embeddings_input_dim": 8 + 24}, "projection_class_embeddings_input_dim"),
    ],
)
def test_two_text_encoders_are_as_wide_as_both(folder: Path, unet: dict[str, Any], param: str) -> None:
    assert refused(folder, unet, SDXL).param == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("scaling_factor", value) for value in (None, 0, math.nan, math.inf, "0.18", True)),
        *((field, value) for field in ("latents_mean", "latents_std") for value in ([1.0] * 3, 0.5, [math.nan] * 4, ["1"] * 4)),
        ("latents_std", [1.0, 1.0, 1.0, 0.0]),
    ],
)
def test_a_scale_of_latents_that_spoils_every_image_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    change(folder / "vae" / "config.json", **{field: value})
    error = refused(folder)
    assert error.param == field
    assert "in the vae config" in error.message


def test_scales_that_are_numbers_are_as_good_as_any(folder: Path) -> None:
    change(folder / "vae" / "config.json", scaling_factor=1, latents_mean=[0, -1, 0.5, 2], latents_std=[1, 2.0, -1, 4])
    assert load(folder).decoder.scale == 1


def test_two_tokenizers_cut_at_the_same_length(folder: Path, tiny_config: Mapping[str, Any]) -> None:
    UNet2DConditionModel(**{**tiny_config, **ADDED}).save_pretrained(folder / "unet")
    change(folder / "model_index.json", **SDXL)
    assert load(folder).encode(["cat"]).pooled is not None
    change(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=12)
    with pytest.raises(Unsupported, match="16 and 12"):
        load(folder)


def test_a_table_of_classes_is_as_wide_as_the_context(folder: Path) -> None:
    save_file({"table": torch.randn(6, 7)}, folder / "class_embedder" / "diffusion_pytorch_model.safetensors")
    change(folder / "model_index.json", **CLASSES)
    with pytest.raises(Unsupported, match="class_embedder") as caught:
        load(folder)
    assert caught.value.param == "cross_attention_dim"


@pytest.mark.parametrize(
    ("id2label", "said"),
    [(["tench"], "list"), ({"first": "tench"}, "'first'"), ({"6": "tench"}, r"class 6 \(tench\), the last one is 5")],
)
def test_names_of_classes_are_a_table_of_those_there_are(folder: Path, id2label: object, said: str) -> None:
    change(folder / "model_index.json", **CLASSES, id2label=id2label)
    with pytest.raises(Unsupported, match=f"^model: id2label .*{said}"):
        load(folder)


@pytest.mark.parametrize("null", [6, -1, "5", True])
def test_the_class_that_means_none_is_one_of_them(folder: Path, null: object) -> None:
    change(folder / "model_index.json", **CLASSES)
    (folder / "class_embedder" / "config.json").write_text(json.dumps({"null_class": null}))
    with pytest.raises(Unsupported, match=r"^model: null_class of class_embedder must be between 0 and 5"):
        load(folder)


def test_class_labels_beside_a_table_of_classes_are_refused(folder: Path) -> None:
    assert refused(folder, {"num_class_embeds": 6}, CLASSES).param == "num_class_embeds"


def test_an_index_that_says_another_class_than_the_unet_is_refused(folder: Path) -> None:
    assert "UNet2DModel" in refused(folder, index={"unet": ["diffusers", "UNet2DModel"]}).message


@pytest.mark.parametrize(
    ("unet", "said"),
    [
        ({"down_block_types": ["FooBlock", "DownBlock2D"]}, "FooBlock"),
        ({"act_fn": "bogus"}, "bogus"),
        ({"norm_num_groups": 3}, "cannot build"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"block_out_channels": [8]}, "block_out_channels"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": [8]}, "sample_size"),
        ({"cross_attention_dim": [8, 6]}, "cross_attention_dim"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused_before_its_weights(folder: Path, unet: dict[str, Any], said: str) -> None:
    assert said in refused(folder, unet).message


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "NoSuchScheduler", None])
def test_a_scheduler_of_another_kind_is_refused_by_name(folder: Path, name: str | None) -> None:
    change(folder / "scheduler" / "scheduler_config.json", _class_name=name)
    assert str(name) in refused(folder).message


def test_a_scheduler_configuration_without_a_class_has_the_index_s(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    change(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert load(folder).levels.walks["euler"].spacing == "linspace"


def test_a_deeply_nested_configuration_is_refused(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(Unsupported, match="not JSON"):
        load(folder)


WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def less(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(min(tensors))
    save_file(tensors, file, metadata={"format": "pt"})


def narrower(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("spoil", [cut, emptied, less, narrower])
@pytest.mark.parametrize("component", WEIGHTS)
def test_weights_that_are_there_but_wrong_are_not_called_missing(
    folder: Path, component: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / WEIGHTS[component])
    with pytest.raises(Unsupported, match=f"weights of {component} |/{WEIGHTS[component]} is ") as caught:
        load(folder)
    assert "missing" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("component", WEIGHTS)
def test_weights_that_are_missing_are_called_so(folder: Path, component: str) -> None:
    (folder / WEIGHTS[component]).unlink()
    with pytest.raises(NotFound, match=f"weights of {component} are missing"):
        load(folder)


def test_weights_for_more_than_the_configuration_are_refused(folder: Path) -> None:
    file = folder / WEIGHTS["unet"]
    save_file({**load_file(file), "another.weight": torch.zeros(1)}, file)
    with pytest.raises(Unsupported, match=r"another\.weight"):
        load(folder)


def test_a_damaged_table_of_classes_is_refused(folder: Path) -> None:
    cut(folder / "class_embedder" / "diffusion_pytorch_model.safetensors")
    (folder / "class_embedder" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 20)
    change(folder / "model_index.json", **CLASSES)
    with pytest.raises(Unsupported, match="class_embedder"):
        load(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(NotFound, match="tokenizer is missing"):
        load(folder)


@pytest.mark.parametrize("changes", [{"model_max_length": 17}, {"model_max_length": 10**30}, {"model_max_length": 0}])
def test_a_tokenizer_that_cuts_later_than_its_encoder_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", **changes)
    with pytest.raises(Unsupported, match="max_position_embeddings"):
        load(folder)


def test_an_unconditional_model_needs_no_text_encoder(folder: Path) -> None:
    """Nothing here is refused for what it does not have."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    channels = {"block_out_channels": (8, 16), "norm_num_groups": 4, "in_channels": 4, "out_channels": 4}
    UNet2DModel(sample_size=8, **blocks, **channels).save_pretrained(folder / "unet")
    change(folder / "model_index.json", text_encoder=None, tokenizer=None, unet=["diffusers", "UNet2DModel"])
    assert not load(folder).prompts.guides
