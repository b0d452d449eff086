"""A full step is the UNet; a partial step with a fresh cache is a full step. diffusers' own forward is the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from engine.anatomy import Anatomy, UNet
from engine.models import Model
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
    "attention without cross": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
}
PLAIN: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
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
    "no attention, no middle": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
    },
}


def inputs(unet: UNet, height: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Three rows at three timesteps: sample, timesteps, context."""
    draw = torch.Generator().manual_seed(7)
    sample = torch.randn(3, unet.config["in_channels"], height, width, generator=draw)
    dim = unet.config.get("cross_attention_dim")
    context = torch.randn(3, 5, dim, generator=draw) if dim else None
    return sample, torch.tensor([981, 500, 3]), context


def check_every_branch(unet: UNet, height: int, width: int) -> None:
    """The two properties: full ≡ unet(…), and a partial step from a fresh cache ≡ full, at every branch."""
    sample, timesteps, context = inputs(unet, height, width)
    anatomy = Anatomy(unet)
    with torch.no_grad():
        given = {} if context is None else {"encoder_hidden_states": context}
        want = unet(sample, timesteps, **given).sample
        full, kept = anatomy.full(sample, timesteps, context, keep=range(1, anatomy.branches + 1))
        torch.testing.assert_close(full, want, rtol=0, atol=1e-5)
        assert sorted(kept) == list(range(1, anatomy.branches + 1))
        for branch, feature in kept.items():
            partial = anatomy.partial(sample, timesteps, context, branch, feature)
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
    check_every_branch(model.anatomy.unet, *size)


def test_a_stale_cache_is_noticed_at_every_branch(tiny: UNet2DConditionModel) -> None:
    """Or the tests above could not fail. The last branch too: its feature is the middle's, of another timestep."""
    sample, timesteps, context = inputs(tiny, 8, 8)
    anatomy = Anatomy(tiny)
    _, stale = anatomy.full(2 * sample, timesteps.flip(0), context, keep=range(1, anatomy.branches + 1))
    full, _ = anatomy.full(sample, timesteps, context)
    for branch, feature in stale.items():
        partial = anatomy.partial(sample, timesteps, context, branch, feature)
        assert (partial - full).abs().max() > 1e-3, branch


def test_rows_do_not_see_each_other(tiny: UNet2DConditionModel) -> None:
    sample, timesteps, context = inputs(tiny, 8, 8)
    assert context is not None
    anatomy = Anatomy(tiny)
    together, _ = anatomy.full(sample, timesteps, context)
    for i in range(len(sample)):
        alone, _ = anatomy.full(sample[i : i + 1], timesteps[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_only_asked_features_are_kept(tiny: UNet2DConditionModel) -> None:
    _, kept = Anatomy(tiny).full(*inputs(tiny, 8, 8), keep={0, 2})
    assert list(kept) == [2]


def test_latents_stay_float32_whatever_the_unet_computes_in(tiny_config: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**tiny_config).eval()
    sample, timesteps, context = inputs(unet, 8, 8)
    assert context is not None
    with torch.no_grad():
        want, _ = Anatomy(unet).full(sample, timesteps, context)
        anatomy = Anatomy(unet.to(torch.bfloat16))
        got, kept = anatomy.full(sample, timesteps, context.to(torch.bfloat16), keep={2})
        partial = anatomy.partial(sample, timesteps, context.to(torch.bfloat16), 2, kept[2])
    assert got.dtype == partial.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0.05)
    torch.testing.assert_close(partial, got, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branch", [-1, 0, 5])
def test_a_branch_that_is_not_there_is_refused(tiny: UNet2DConditionModel, branch: int) -> None:
    with pytest.raises(InvalidInput, match="between 1 and 4") as caught:
        Anatomy(tiny).partial(*inputs(tiny, 8, 8), branch, torch.empty(0))
    assert caught.value.param == "branch"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_class_embeds": 10}, "num_class_embeds"),
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
        Anatomy(unet)
    assert caught.value.param == field
