"""LoRAs: every layout finds its layers, and what is added is scale · (α / r) · B · A."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from places import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from engine import random_model
from engine.__main__ import app
from engine.config import complete
from engine.folder import Folder
from engine.importing.lora import Lora, fused, parse_lora, read_lora
from engine.importing.lora_names import Layer, layers_by_name
from engine.importing.networks import Shapes, expected, networks
from engine.importing.original_names import original_name
from registry.errors import InvalidInput, NotFound, Unsupported

RANK, ALPHA = 2, 3.0
Tensors = dict[str, Tensor]
Wanted = Mapping[str, Shapes]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"  # of the UNet of Stable Diffusion XL's kind
CONVOLUTION = "up_blocks.0.resnets.1.conv2"


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """Names and shapes of a small model with two text encoders."""
    folder = tmp_path_factory.mktemp("lora") / "tiny-sdxl"
    random_model.write("tiny-sdxl", folder)
    return {name: expected(Folder(folder), name) for name in networks(Folder(folder))}


@pytest.fixture(scope="module")
def unet() -> dict[str, Any]:
    return complete({**random_model.SIZES["tiny-sdxl"].unet, "_class_name": "UNet2DConditionModel"})


@pytest.fixture(scope="module")
def layers(wanted: Wanted, unet: dict[str, Any]) -> dict[str, Layer]:
    return layers_by_name(wanted, unet)


def halves(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A change of a weight of this shape: down and up."""
    rng = torch.Generator().manual_seed(seed)
    down, up = torch.randn(RANK, *shape[1:], generator=rng), torch.randn(shape[0], RANK, generator=rng)
    return down, up.view(*up.shape, *(1 for _ in shape[2:]))


def spelt(layout: str, component: str, layer: str, change: tuple[Tensor, Tensor]) -> Tensors:
    """One layer's change as the trainers of a layout write it; with α where they write it into the file."""
    down, up = change
    bare = layer.removeprefix("text_model.")
    inside = layer if component == "unet" else f"text_model.{bare}"
    if layout == "peft":
        return {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    if layout == "diffusers":
        return {f"{component}.{inside}.lora_A.weight": down, f"{component}.{inside}.lora_B.weight": up}
    if layout == "old diffusers":
        old = inside.replace("attn2.to_v", "attn2.processor.to_v").replace("q_proj", "to_q")
        return {f"{component}.{old}_lora.down.weight": down, f"{component}.{old}_lora.up.weight": up}
    name = inside if layout == "kohya" or component != "unet" else original_name(layer, 1, frozenset({0, 1}))
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[component]
    kohya = f"{prefix}_{name.replace('.', '_')}"
    return {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up, f"{kohya}.alpha": torch.tensor(ALPHA)}


def saved(tmp_path: Path, tensors: Tensors, **metadata: str) -> Path:
    file = tmp_path / "style.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata or None)
    return file


@pytest.mark.parametrize("layout", ["kohya", "kohya sgm", "diffusers", "old diffusers", "peft"])
def test_every_layout_changes_the_same_layers_by_the_same_product(
    tmp_path: Path, wanted: Wanted, layers: dict[str, Layer], layout: str
) -> None:
    places = [
        ("unet", ATTENTION),
        ("text_encoder", "encoder.layers.1.self_attn.q_proj"),
        *([("unet", CONVOLUTION)] if layout != "old diffusers" else []),
        *([("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj")] if layout != "peft" else []),
    ]
    tensors: Tensors = {}
    for component, layer in places:
        tensors |= spelt(layout, component, layer, halves(wanted[component][f"{layer}.weight"]))
    metadata = {}
    if layout == "diffusers":
        metadata = {"lora_adapter_metadata": json.dumps({f"{name}.lora_alpha": ALPHA for name, _ in places})}
    if layout == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    lora = read_lora(saved(tmp_path, tensors, **metadata), 0.8, layers, wanted)
    assert set(lora.changes) == {Layer(component, f"{layer}.weight") for component, layer in places} != set()
    alpha = RANK if layout == "old diffusers" else ALPHA  # which they had no place for
    for layer in lora.changes:
        shape = wanted[layer.component][layer.weight]
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        down, up = halves(shape)
        product = torch.einsum("or,r...->o...", up.flatten(1), down)
        assert torch.allclose(fused(weight, layer, [lora]), weight + 0.8 * alpha / RANK * product, atol=1e-6)


@pytest.mark.parametrize("layout", ["kohya", "kohya sgm"])
def test_kohyas_names_mean_the_layers_that_diffusers_conversion_says(
    wanted: Wanted, layers: dict[str, Layer], unet: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    places = [
        (component, weight.removesuffix(".weight"))
        for component, shapes in wanted.items()
        for weight, shape in shapes.items()
        if component != "vae" and weight.endswith(".weight") and ("attn" in weight or ".ff." in weight or ".mlp." in weight)
        if len(shape) == 2
    ]
    if layout == "kohya sgm":  # resnets are named so there only
        places += [("unet", name) for name in ("conv_in", "time_embedding.linear_1", "add_embedding.linear_2")]
    assert len(places) > 50
    for component, layer in places:
        tensors = spelt(layout, component, layer, halves(wanted[component][f"{layer}.weight"]))
        config = type("Config", (), {"layers_per_block": unet["layers_per_block"]})
        theirs, _ = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=config)
        own = read_lora(saved(tmp_path, tensors), 1.0, layers, wanted)
        same = read_lora(saved(tmp_path, theirs), 1.0, layers, wanted)
        assert set(own.changes) == set(same.changes) == {Layer(component, f"{layer}.weight")}


def test_several_are_added_in_float32_and_rounded_once(tmp_path: Path, wanted: Wanted, layers: dict[str, Layer]) -> None:
    layer = Layer("unet", f"{ATTENTION}.weight")
    shape = wanted["unet"][layer.weight]
    loras: list[Lora] = []
    for i, scale in enumerate((1.0, -0.5, 0.3)):
        (tmp_path / str(i)).mkdir()
        loras.append(
            read_lora(saved(tmp_path / str(i), spelt("kohya", "unet", ATTENTION, halves(shape, i))), scale, layers, wanted)
        )
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).half()
    total = weight.double()
    for i, lora in enumerate(loras):
        down, up = halves(shape, i)
        total += lora.scale * ALPHA / RANK * (up @ down).double()
    made = fused(weight, layer, loras)
    assert made.dtype == torch.float16
    assert (made != total.half()).float().mean() < 0.01  # those that float32 has on the other side of a half
    assert fused(weight, Layer("unet", "conv_in.weight"), loras) is weight
    huge = [Lora(loras[0].file, 1e9, loras[0].changes)]
    with pytest.raises(Unsupported, match=r"attn2\.to_v\.weight of unet overflows in float16"):
        fused(weight, layer, huge)


def without(*endings: str) -> Callable[[Tensors], object]:
    def spoil(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(endings)]:
            del tensors[name]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda t: t.update({"lora_unet_mid_block_9.lora_down.weight": torch.zeros(2, 2)}),
            "is called lora_unet_mid_block_9.lora_d",
        ),
        (
            lambda t: t.update({"lora_unet_conv_in.lora_down.bias": torch.zeros(2)}),
            "is called lora_unet_conv_in.lora_down.bias",
        ),
        (
            lambda t: t.update({f"unet.{ATTENTION}.lora_A.weight": torch.zeros(2, 2)}),
            f"is called unet.{ATTENTION}.lora_A.weight",
        ),
        (lambda t: t.update({"lora_unet_conv_in.dora_scale": torch.zeros(2)}), "is DoRA, which this version cannot add"),
        (lambda t: t.update({"lora_unet_conv_in.hada_w1_a": torch.zeros(2)}), "is LoHa"),
        (lambda t: t.update({"lora_unet_conv_in.diff_b": torch.zeros(2)}), "is whole weights beside low-rank ones"),
        (without("lora_up.weight"), "its up half is missing"),
        (without("weight"), "its"),
        (lambda t: t.clear(), "is no LoRA"),
        (lambda t: t.update({name: t[name][:, :5] for name in t if name.endswith("lora_down.weight")}), "expected a change of"),
    ],
)
def test_nothing_of_a_file_is_dropped_silently(
    tmp_path: Path, wanted: Wanted, layers: dict[str, Layer], spoil: Callable[[Tensors], object], words: str
) -> None:
    tensors = spelt("kohya", "unet", ATTENTION, halves(wanted["unet"][f"{ATTENTION}.weight"]))
    spoil(tensors)
    with pytest.raises(Unsupported) as refused:
        read_lora(saved(tmp_path, tensors), 1.0, layers, wanted)
    assert words in refused.value.message
    assert "style.safetensors" in refused.value.message


def test_a_lora_of_another_kind_of_model_is_known_by_its_context(
    tmp_path: Path, wanted: Wanted, layers: dict[str, Layer]
) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.zeros(4, 768), f"{key}.lora_up.weight": torch.zeros(320, 4)}
    with pytest.raises(Unsupported, match=r"whose context is 768 wide; here it is 96"):
        read_lora(saved(tmp_path, tensors), 1.0, layers, wanted)


def test_textual_inversions_that_came_with_it_are_left_out_and_said(
    tmp_path: Path, wanted: Wanted, layers: dict[str, Layer]
) -> None:
    tensors = spelt("kohya", "unet", ATTENTION, halves(wanted["unet"][f"{ATTENTION}.weight"]))
    lora = read_lora(saved(tmp_path, tensors | {"bundle_emb.mine.emb_params": torch.zeros(2, 8)}), 1.0, layers, wanted)
    assert lora.notes == ("style.safetensors: 1 tensors are left out: textual inversions that came with it",)
    assert lora.layers() == {"unet": 1}


def test_pefts_settings_count_where_alpha_stands_in_no_tensor(tmp_path: Path, wanted: Wanted, layers: dict[str, Layer]) -> None:
    shape = wanted["unet"][f"{ATTENTION}.weight"]
    file = saved(tmp_path, spelt("peft", "unet", ATTENTION, halves(shape)))
    with pytest.raises(NotFound, match=r"adapter_config\.json"):
        read_lora(file, 1.0, layers, wanted)
    for said, factor in (
        ({"lora_alpha": 8}, 8 / RANK),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / RANK**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_v": 5}}, 5 / RANK),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_v": 5}}, 8 / RANK),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        (change,) = read_lora(file, 1.0, layers, wanted).changes.values()
        assert change.factor == pytest.approx(factor)


@pytest.mark.parametrize("prefix", ["unet.", ""], ids=["of a pipeline", "of a UNet alone"])
@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({"lora_alpha": 8}, 8 / RANK),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / RANK**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {f"^{ATTENTION}": 5}}, 5 / RANK),
        ({"lora_alpha": 8, "alpha_pattern": {"^attn2.to_v": 5}}, 8 / RANK),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_v": 5}}, 5 / RANK),
    ],
)
def test_what_diffusers_writes_into_the_header_counts(
    tmp_path: Path, wanted: Wanted, layers: dict[str, Layer], prefix: str, said: dict[str, Any], factor: float
) -> None:
    """`save_lora_weights` of a pipeline names the component of settings and tensors, `save_lora_adapter` of a UNet does not."""
    down, up = halves(wanted["unet"][f"{ATTENTION}.weight"])
    tensors = {f"{prefix}{ATTENTION}.lora_A.weight": down, f"{prefix}{ATTENTION}.lora_B.weight": up}
    header = json.dumps({f"{prefix}{name}": value for name, value in said.items()})
    (change,) = read_lora(saved(tmp_path, tensors, lora_adapter_metadata=header), 1.0, layers, wanted).changes.values()
    assert change.factor == pytest.approx(factor)


def test_a_scale_stands_behind_the_last_colon(tmp_path: Path) -> None:
    assert parse_lora("a/style.safetensors:0.8") == (Path("a/style.safetensors"), 0.8)
    assert parse_lora("style.safetensors") == (Path("style.safetensors"), 1.0)
    assert parse_lora("c:style.safetensors:-1") == (Path("c:style.safetensors"), -1.0)
    odd = tmp_path / "style:2"
    odd.touch()
    assert parse_lora(str(odd)) == (odd, 1.0)
    for wrong in ("style.safetensors:much", "style.safetensors:nan", "style.safetensors:inf"):
        with pytest.raises(InvalidInput):
            parse_lora(wrong)


def test_a_folder_with_a_lora_is_another_model_and_says_so(tmp_path: Path) -> None:
    emoji = ROOT / "models" / "emoji64"
    before = load_file(emoji / "unet" / "diffusion_pytorch_model.safetensors")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = halves(tuple(before[f"{layer}.weight"].shape))
    file = saved(tmp_path, spelt("kohya", "unet", layer, (down, up)))
    done = CliRunner().invoke(app, ["import", str(emoji), "--lora", f"{file}:0.5", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert "style.safetensors × 0.5: 1 layers of unet are changed" in done.stdout
    after = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {f"{layer}.weight"}
    change = 0.5 * ALPHA / RANK * (up @ down)
    assert torch.equal(after[f"{layer}.weight"], (before[f"{layer}.weight"].float() + change).half())
    assert "| LoRA × 0.5 | style.safetensors | `" in (tmp_path / "out" / "README.md").read_text()
    assert Folder(tmp_path / "out").fingerprint() != Folder(emoji).fingerprint()


def test_a_lora_of_kohyas_for_a_model_of_another_width_is_refused_by_the_widths(
    wanted: Wanted, layers: dict[str, Layer], tmp_path: Path
) -> None:
    """Its first tensor is α, which has no width."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    rows, width = wanted["unet"][f"{layer}.weight"]
    tensors = spelt("kohya", "unet", layer, halves((rows, width + 8)))
    with pytest.raises(Unsupported, match=rf"trained for a model whose context is {width + 8} wide; here it is {width}"):
        read_lora(saved(tmp_path, dict(sorted(tensors.items()))), 1.0, layers, wanted)
