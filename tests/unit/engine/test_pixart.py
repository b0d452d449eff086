"""PixArt unrolled: its full and partial steps are diffusers', to the bit where diffusers has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from model_folders import PIXART
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformer_checks import is_first_block_cache, rows_are_alone

from engine.compiling import Compilation
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.families.pixart import PIXART as FAMILY
from engine.macs import count_steps, meta_network
from registry.errors import Unsupported
from registry.schedule import Blocks

CONFIG = {**PIXART, "use_additional_conditions": True, "_class_name": "PixArtTransformer2DModel"}
PAIRS = [Blocks(front, back) for front in range(4) for back in range(4 - front)]
SOME = [Blocks(1, 0), Blocks(2, 1), Blocks(0, 2), Blocks(0, 0), Blocks(3, 0), Blocks(0, 3)]
TOKENS = 7


@pytest.fixture(scope="module")
def pixart() -> Iterator[PixArtTransformer2DModel]:
    """Of four blocks, told of sizes, with a learned variance; its weights are large enough for every block to matter."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PixArtTransformer2DModel(**PIXART, use_additional_conditions=True)
        for weight in made.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
        yield made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(pixart: PixArtTransformer2DModel) -> Denoiser:
    return FAMILY.unrolled(pixart)


def inputs(seed: int = 0, rows: int = 3, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Condition]:
    """Of texts of 1, 4 and 7 tokens, of which none fills a chunk but the last."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 4, height, width, generator=generator)
    timesteps = 999 * torch.rand(rows, generator=generator)
    mask = torch.arange(TOKENS) < torch.tensor([[1], [4], [7]])
    context = torch.randn(3, TOKENS, 16, generator=generator)
    condition = Condition(context, sizes=torch.empty(3, 3), mask=mask).at(8 * height, 8 * width)
    return sample, timesteps, condition[:rows]


def own(pixart: PixArtTransformer2DModel, sample: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """diffusers' own prediction, without the learned variance."""
    assert condition.sizes is not None
    assert condition.mask is not None
    told = {"resolution": condition.sizes[:, :2], "aspect_ratio": condition.sizes[:, 2:]}
    made: Tensor = pixart(sample, condition.context, timesteps, told, encoder_attention_mask=condition.mask.long()).sample
    return made[:, :4]


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (6, 4)])
def test_a_full_step_is_the_modules_own_forward(
    pixart: PixArtTransformer2DModel, network: Denoiser, size: tuple[int, int]
) -> None:
    """At other sizes than its own too, whose positions are computed once."""
    given = inputs(0, 3, *size)
    for _ in range(2):
        got, kept = network.full(*given)
        assert torch.equal(got, own(pixart, *given))
        assert not kept


def test_padding_is_not_seen_and_sizes_are(network: Denoiser) -> None:
    sample, timesteps, condition = inputs()
    want, _ = network.full(sample, timesteps, condition)
    assert condition.context is not None
    assert condition.mask is not None
    padded = condition.context.masked_fill(~condition.mask[..., None], 3.0)
    seen = Condition(padded, sizes=condition.sizes, mask=condition.mask)
    torch.testing.assert_close(network.full(sample, timesteps, seen)[0], want, rtol=0, atol=1e-5)
    assert not torch.allclose(network.full(sample, timesteps, condition.at(64, 128))[0], want, atol=1e-3)


@pytest.mark.parametrize("branch", PAIRS, ids=str)
def test_a_partial_step_on_a_fresh_residual_is_the_full_step(network: Denoiser, branch: Blocks) -> None:
    full, kept = network.full(*inputs(), keep=[branch])
    assert kept[branch].shape == (3, 16, 24)
    torch.testing.assert_close(network.partial(*inputs(), branch, kept[branch]), full, rtol=0, atol=1e-5)


class Adds(nn.Module):
    """A block in the place of the middle, which adds a residual."""

    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden + self.residual


@pytest.mark.parametrize("branch", SOME, ids=str)
def test_a_partial_step_is_the_forward_of_the_same_module_without_its_middle(
    pixart: PixArtTransformer2DModel, network: Denoiser, branch: Blocks
) -> None:
    _, kept = network.full(*inputs(1), keep=[branch])
    shortened, blocks = deepcopy(pixart), list(pixart.transformer_blocks)
    shortened.transformer_blocks = nn.ModuleList(
        [*blocks[: branch.front], Adds(kept[branch]), *blocks[len(blocks) - branch.back :]]
    )
    assert torch.equal(network.partial(*inputs(2), branch, kept[branch]), own(shortened, *inputs(2)))


def test_one_block_at_the_front_is_diffusers_first_block_cache(pixart: PixArtTransformer2DModel, network: Denoiser) -> None:
    is_first_block_cache(pixart, network, own, inputs)


def test_rows_of_several_texts_do_not_look_at_each_other(network: Denoiser) -> None:
    rows_are_alone(network, inputs(), Blocks(1, 2), rtol=1e-4)


def test_compiled_regions_are_the_same(pixart: PixArtTransformer2DModel) -> None:
    short, branch = deepcopy(pixart), Blocks(0, 0)
    short.transformer_blocks = short.transformer_blocks[:1]
    plain, compiled = FAMILY.unrolled(short), FAMILY.unrolled(short, Compilation("eager").region)
    with torch.inference_mode():
        (want, kept), (got, own_kept) = (one.full(*inputs(), keep=[branch]) for one in (plain, compiled))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(own_kept[branch], kept[branch], rtol=0, atol=1e-5)


XL = {"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096}  # all else is diffusers' default


@pytest.mark.parametrize(
    ("changes", "tokens", "parameters", "macs"),
    [
        ({}, 120, 611_349_152, 3_254_761_783_296),  # 0.6 B parameters in its paper
        ({"use_additional_conditions": False}, 300, 610_856_096, 3_316_789_886_976),
    ],
    ids=["alpha", "sigma"],
)
def test_macs_at_1024_pixels_are_those_that_torch_counts(
    changes: dict[str, Any], tokens: int, parameters: int, macs: int
) -> None:
    counted = count_steps({**XL, **changes}, (4, 128, 128), tokens)
    assert (counted.parameters, counted.full.macs) == (parameters, macs)
    one, none = counted.partial[Blocks(1, 0)].macs, counted.partial[Blocks(0, 0)].macs
    assert counted.partial[Blocks(3, 2)].macs - none == 5 * (one - none)
    assert counted.features[Blocks(3, 2)] == (4096, 1152)
    width, patches = 1152, 4096
    attention = 2 * patches * patches * width + 2 * patches * tokens * width
    linear = patches * (4 * width * width + 2 * width * width + 8 * width * width) + tokens * 2 * width * width
    assert one - none == attention + linear


def test_macs_of_all_steps_are_those_that_run() -> None:
    """At another size than its own, whose positions take none."""
    counted = count_steps(CONFIG, (4, 8, 12), TOKENS)
    network = FAMILY.unrolled(meta_network(CONFIG))
    sample, timesteps, condition = inputs(0, 1, 8, 12)
    given = sample.to("meta"), timesteps.to("meta"), condition.to("meta")
    network.full(*given)  # from now on it knows its positions
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        _, kept = network.full(*given, keep=SOME)
    assert counted.full.macs == whole.get_total_flops() // 2
    for branch in SOME:
        with FlopCounterMode(display=False) as part, torch.no_grad():
            network.partial(*given, branch, kept[branch])
        assert counted.partial[branch].macs == part.get_total_flops() // 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"norm_type": "ada_norm_zero"}, "norm_type"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"out_channels": 9}, "out_channels"),
        ({"sample_size": 9}, "sample_size"),
        ({"cross_attention_dim": 23}, "cross_attention_dim"),
        ({"attention_head_dim": 10, "cross_attention_dim": 20}, "use_additional_conditions"),
        ({"_class_name": "Transformer2DModel", "num_vector_embeds": 8, "norm_type": "ada_norm_single"}, "num_vector_embeds"),
    ],
    ids=json.dumps,
)
def test_what_cannot_run_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        meta_network({**CONFIG, **changes})
    assert caught.value.param == field
