"""A full step is the UNet; a partial step with a fresh cache is a full step. diffusers' own forward is the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from model_folders import PLAIN
from torch import Tensor

from engine.condition import Condition
from engine.items import UNet
from engine.model import Model
from engine.unrolled import UnrolledUNet
from registry.errors import InvalidInput, Unsupported

CROSS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "two layers, three levels": {
        "layers_per_block": 2,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "attention at the bottom, as LDM": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "no middle": {"mid_block_type": None},
    "plain middle": {"mid_block_type": "UNetMidBlock2D"},
    "centred input": {"center_input_sample": True},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "time activation": {"time_embedding_act_fn": "silu"},
    "linear projections": {"use_linear_projection": True, "transformer_layers_per_block": 2},
    "two of everything, as Stable Diffusion XL": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "class labels": {"num_class_embeds": 10},
    "attention without cross": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
}
UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "as DDPM": {},
    "attention outside": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
    "resnet sampling": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "class labels": {"num_class_embeds": 10},
    "unpadded sampling, as CIFAR-10's": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    "one head, as unconditional latent diffusion": {"attention_head_dim": None, "layers_per_block": 2},
    "resnets that sample, as ADM": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "no attention, no middle": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
    },
}


def inputs(unet: UNet, height: int, width: int) -> tuple[Tensor, Tensor, Condition]:
    """Three rows at three timesteps: sample, timesteps, and as much of a condition as this UNet takes."""
    draw, config = torch.Generator().manual_seed(7), unet.config
    sample = torch.randn(3, config["in_channels"], height, width, generator=draw)
    dim = config.get("cross_attention_dim")
    context = torch.randn(3, 5, dim, generator=draw) if dim else None
    pooled = sizes = labels = None
    if config.get("addition_embed_type") == "text_time":
        pooled = torch.randn(3, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"])
        sizes = torch.randint(0, 1024, (3, 6), generator=draw).float()
    if config.get("num_class_embeds") is not None:
        labels = torch.randint(0, config["num_class_embeds"], (3,), generator=draw)
    return sample, torch.tensor([981.0, 500.5, 3.0]), Condition(context, pooled, sizes, labels)


def diffusers_names(condition: Condition) -> dict[str, Any]:
    """The condition as diffusers' forward takes it."""
    named: dict[str, Any] = {"encoder_hidden_states": condition.context, "class_labels": condition.labels}
    if condition.pooled is not None:
        named["added_cond_kwargs"] = {"text_embeds": condition.pooled, "time_ids": condition.sizes}
    return {name: value for name, value in named.items() if value is not None}


def check_every_branch(unet: UNet, height: int, width: int) -> None:
    """The two properties: full ≡ unet(…), and a partial step from a fresh cache ≡ full, at every branch."""
    sample, timesteps, condition = inputs(unet, height, width)
    network = UnrolledUNet(unet)
    with torch.no_grad():
        want = unet(sample, timesteps, **diffusers_names(condition)).sample
        full, kept = network.full(sample, timesteps, condition, keep=range(1, network.branches + 1))
        torch.testing.assert_close(full, want, rtol=0, atol=1e-5)
        assert sorted(kept) == list(range(1, network.branches + 1))
        for branch, feature in kept.items():
            partial = network.partial(sample, timesteps, condition, branch, feature)
            assert (partial - full).abs().max() <= 1e-5, branch


@pytest.mark.parametrize("changes", CROSS.values(), ids=CROSS)
def test_fresh_partial_is_full_is_diffusers(tiny_config: Mapping[str, Any], changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_every_branch(UNet2DConditionModel(**{**tiny_config, **changes}).eval(), 8, 8)


@pytest.mark.parametrize("changes", UNCONDITIONAL.values(), ids=UNCONDITIONAL)
def test_fresh_partial_is_full_is_diffusers_without_conditions(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_every_branch(UNet2DModel(**{**PLAIN, **changes}).eval(), 8, 8)


@pytest.mark.parametrize("size", [(17, 15), (9, 8), (8, 11), (5, 3)])
def test_odd_sizes_come_back_to_themselves(tiny_config: Mapping[str, Any], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    changes = CROSS["two layers, three levels"]
    check_every_branch(UNet2DConditionModel(**{**tiny_config, **changes}).eval(), *size)


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_fresh_partial_is_full_is_diffusers_on_the_bundled_model(model: Model, size: tuple[int, int]) -> None:
    check_every_branch(model.network.unet, *size)


def test_a_stale_cache_is_noticed_at_every_branch(tiny: UNet2DConditionModel) -> None:
    """Or the tests above could not fail. The last branch too: its feature is the middle's, of another timestep."""
    sample, timesteps, condition = inputs(tiny, 8, 8)
    network = UnrolledUNet(tiny)
    _, stale = network.full(2 * sample, timesteps.flip(0), condition, keep=range(1, network.branches + 1))
    full, _ = network.full(sample, timesteps, condition)
    assert sorted(stale) == [*range(1, network.branches + 1)]
    for branch, feature in stale.items():
        partial = network.partial(sample, timesteps, condition, branch, feature)
        assert (partial - full).abs().max() > 1e-3, branch


def test_rows_do_not_see_each_other(tiny: UNet2DConditionModel) -> None:
    sample, timesteps, condition = inputs(tiny, 8, 8)
    network = UnrolledUNet(tiny)
    together, _ = network.full(sample, timesteps, condition)
    for i in range(len(sample)):
        alone, _ = network.full(sample[i : i + 1], timesteps[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_only_asked_features_are_kept(tiny: UNet2DConditionModel) -> None:
    _, kept = UnrolledUNet(tiny).full(*inputs(tiny, 8, 8), keep={0, 2})
    assert list(kept) == [2]


def test_latents_stay_float32_whatever_the_unet_computes_in(tiny_config: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**tiny_config).eval()
    sample, timesteps, condition = inputs(unet, 8, 8)
    with torch.no_grad():
        want, _ = UnrolledUNet(unet).full(sample, timesteps, condition)
        network = UnrolledUNet(unet.to(torch.bfloat16))
        got, kept = network.full(sample, timesteps, condition, keep={2})
        partial = network.partial(sample, timesteps, condition, 2, kept[2])
    assert got.dtype == partial.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0.05)
    torch.testing.assert_close(partial, got, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branch", [-1, 0, 5])
def test_a_branch_that_is_not_there_is_refused(tiny: UNet2DConditionModel, branch: int) -> None:
    with pytest.raises(InvalidInput, match="branches 1 to 4") as caught:
        UnrolledUNet(tiny).partial(*inputs(tiny, 8, 8), branch, torch.empty(0))
    assert caught.value.param == "branch"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_class_embeds": 10, "class_embeddings_concat": True}, "class_embeddings_concat"),
        ({"time_cond_proj_dim": 3}, "time_cond_proj_dim"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"encoder_hid_dim": 4}, "encoder_hid_dim_type"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D")}, "unet"),
        ({"up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D")}, "unet"),
    ],
)
def test_what_cannot_be_unrolled_is_named(tiny_config: Mapping[str, Any], changes: dict[str, Any], field: str) -> None:
    extra = {"addition_embed_type_num_heads": 2} if "addition_embed_type" in changes else {}
    unet = UNet2DConditionModel(**{**tiny_config, **changes, **extra})
    with pytest.raises(Unsupported) as caught:
        UnrolledUNet(unet)
    assert caught.value.param == field
