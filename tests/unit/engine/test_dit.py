"""DiT unrolled: its full and partial steps are diffusers', to the bit where diffusers has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from model_folders import DIT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformer_checks import is_first_block_cache, rows_are_alone

from engine.compiling import Compilation
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.families.dit import DIT as FAMILY
from engine.families.transformer import UnrolledTransformer
from engine.macs import count_steps, meta_network
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Blocks

CONFIG = {**DIT, "num_embeds_ada_norm": 5, "_class_name": "DiTTransformer2DModel"}
PAIRS = [Blocks(1, 0), Blocks(2, 2), Blocks(0, 2), Blocks(3, 1), Blocks(0, 0), Blocks(5, 0), Blocks(0, 5)]
XL = {"_class_name": "DiTTransformer2DModel", "in_channels": 4, "out_channels": 8}  # all else is diffusers' default


@pytest.fixture(scope="module")
def dit() -> Iterator[DiTTransformer2DModel]:
    """Of six blocks, with a learned variance; its weights are large enough for every block to matter."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = DiTTransformer2DModel(**{**DIT, "num_embeds_ada_norm": 5}, in_channels=4, out_channels=8)
        for weight in made.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
        yield made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(dit: DiTTransformer2DModel) -> Denoiser:
    return FAMILY.unrolled(dit)


def inputs(seed: int = 0, rows: int = 3) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 4, 8, 8, generator=generator)
    timesteps = 999 * torch.rand(rows, generator=generator)
    return sample, timesteps, Condition(labels=torch.tensor([1, 5, 4])[:rows])


def own(dit: DiTTransformer2DModel, sample: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """diffusers' own prediction, without the learned variance."""
    made: Tensor = dit(sample, timesteps, condition.labels).sample
    return made[:, :4]


def test_a_full_step_is_the_modules_own_forward(dit: DiTTransformer2DModel, network: Denoiser) -> None:
    got, kept = network.full(*inputs())
    assert torch.equal(got, own(dit, *inputs()))
    assert not kept


@pytest.mark.parametrize("branch", PAIRS, ids=str)
def test_a_partial_step_on_a_fresh_residual_is_the_full_step(network: Denoiser, branch: Blocks) -> None:
    full, kept = network.full(*inputs(), keep=[branch])
    assert kept[branch].shape == (3, 16, 16)
    torch.testing.assert_close(network.partial(*inputs(), branch, kept[branch]), full, rtol=0, atol=1e-5)


class Adds(nn.Module):
    """A block in the place of the middle, which adds a residual; with the embeddings of a block, for the head to find."""

    def __init__(self, residual: Tensor, block: nn.Module) -> None:
        super().__init__()
        self.residual, self.norm1 = residual, block.norm1

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden + self.residual


@pytest.mark.parametrize("branch", PAIRS, ids=str)
def test_a_partial_step_is_the_forward_of_the_same_module_without_its_middle(
    dit: DiTTransformer2DModel, network: Denoiser, branch: Blocks
) -> None:
    _, kept = network.full(*inputs(1), keep=[branch])
    shortened, blocks = deepcopy(dit), list(dit.transformer_blocks)
    front, back = blocks[: branch.front], blocks[len(blocks) - branch.back :]
    shortened.transformer_blocks = nn.ModuleList([*front, Adds(kept[branch], blocks[0]), *back])
    assert torch.equal(network.partial(*inputs(2), branch, kept[branch]), own(shortened, *inputs(2)))


def test_one_block_at_the_front_is_diffusers_first_block_cache(dit: DiTTransformer2DModel, network: Denoiser) -> None:
    is_first_block_cache(dit, network, own, inputs)


def test_rows_do_not_look_at_each_other(network: Denoiser) -> None:
    rows_are_alone(network, inputs(), Blocks(1, 2))


def test_in_half_precision_a_residual_is_the_difference_in_float32(dit: DiTTransformer2DModel) -> None:
    half = FAMILY.unrolled(deepcopy(dit).to(torch.bfloat16))
    assert isinstance(half, UnrolledTransformer)
    streams, given = half.parts.before(inputs()[0].to(torch.bfloat16), *inputs()[1:])
    begin = streams
    for block in half.parts.blocks:
        streams = block(streams, given)
    output, kept = half.full(*inputs(), keep=[Blocks(0, 0)])
    assert output.dtype == torch.float32, "as the latents are"
    assert torch.equal(kept[Blocks(0, 0)], (streams[0].float() - begin[0].float()).to(torch.bfloat16))


@pytest.mark.parametrize("branch", [3, Blocks(6, 0), Blocks(3, 3), Blocks(-1, 2)], ids=str)
def test_what_leaves_no_block_out_or_is_no_pair_is_refused(network: Denoiser, branch: Any) -> None:
    with pytest.raises(InvalidInput, match="this transformer has 6 blocks"):
        network.partial(*inputs(), branch, torch.zeros(3, 16, 16))


def test_compiled_regions_are_the_same(dit: DiTTransformer2DModel) -> None:
    short, branch = deepcopy(dit), Blocks(1, 0)
    short.transformer_blocks = short.transformer_blocks[:2]
    plain, compiled = FAMILY.unrolled(short), FAMILY.unrolled(short, Compilation("eager").region)
    with torch.inference_mode():
        (want, kept), (got, own_kept) = (one.full(*inputs(), keep=[branch]) for one in (plain, compiled))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        torch.testing.assert_close(own_kept[branch], kept[branch], rtol=0, atol=1e-5)
        want, got = (one.partial(*inputs(2), branch, kept[branch]) for one in (plain, compiled))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_macs_of_the_largest_one_are_the_published_ones() -> None:
    """118.64 G in the paper (arXiv 2212.09748, table 4), products of attention included; diffusers evaluates the embedding of
    time and class in each of the 28 blocks, where the paper's code does so once."""
    counted = count_steps(XL, (4, 32, 32), 0)
    assert counted.parameters == 749_826_464
    assert counted.full.macs == 118_666_838_016
    embedding = 256 * 1152 + 1152 * 1152
    attention = 28 * 2 * 256 * 256 * 1152
    assert counted.full.macs - 28 * embedding == pytest.approx(118.64e9, rel=2e-4)
    assert attention == 4_227_858_432
    one = counted.partial[Blocks(1, 0)].macs
    assert counted.partial[Blocks(3, 2)].macs - counted.partial[Blocks(0, 0)].macs == 5 * (
        one - counted.partial[Blocks(0, 0)].macs
    )
    assert counted.features[Blocks(3, 2)] == (256, 1152)
    assert len(counted.partial) == 28 * 29 // 2


@pytest.mark.parametrize("branch", PAIRS, ids=str)
def test_macs_of_a_partial_step_are_those_that_run(dit: DiTTransformer2DModel, branch: Blocks) -> None:
    counted = count_steps({**CONFIG, "in_channels": 4, "out_channels": 8}, (4, 8, 8), 0)
    network = FAMILY.unrolled(meta_network({**CONFIG, "in_channels": 4, "out_channels": 8}))
    given = [tensor.to("meta") for tensor in inputs(rows=1)[:2]]
    condition = inputs(rows=1)[2].to("meta")
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        _, kept = network.full(*given, condition, keep=[branch])
    with FlopCounterMode(display=False) as part, torch.no_grad():
        network.partial(*given, condition, branch, kept[branch])
    assert counted.full.macs == whole.get_total_flops() // 2
    assert counted.partial[branch].macs == part.get_total_flops() // 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type"),
        ({"out_channels": 9}, "out_channels"),
        ({"sample_size": 9}, "sample_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"patch_size": None}, "patch_size"),
        ({"_class_name": "Transformer2DModel", "cross_attention_dim": 8, "norm_type": "ada_norm_zero"}, "cross_attention_dim"),
        ({"_class_name": "Transformer2DModel"}, "norm_type"),
        ({"_class_name": "AuraFlowTransformer2DModel", "in_channels": "x"}, "model"),
        ({"_class_name": "SanaTransformer2DModel"}, "model"),
    ],
    ids=json.dumps,
)
def test_what_cannot_run_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        meta_network({**CONFIG, **changes})
    assert caught.value.param == field
