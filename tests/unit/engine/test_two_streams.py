"""Stable Diffusion 3 and FLUX unrolled: their full and partial steps are diffusers', and MACs those that were counted."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
import two_streams
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformer_checks import rows_are_alone

from engine.compiling import Compilation
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.families.family import Family
from engine.families.flux import FLUX, packed, places, unpacked
from engine.families.sd3 import SD3
from engine.macs import count_steps, example, meta_network
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Blocks

PAIRS = [Blocks(*pair) for pair in [(0, 0), (1, 0), (0, 1), (2, 0), (0, 4), (1, 1), (2, 2), (3, 2), (1, 4), (5, 0), (0, 5)]]
TEXT = 5  # tokens


class Case(NamedTuple):
    """A network and how its own forward is called."""

    family: Family
    module: Any
    network: Denoiser

    @property
    def config(self) -> dict[str, Any]:
        return self.network.config

    def inputs(self, seed: int = 0, rows: int = 3, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Condition]:
        """Of images and texts that all differ. The timesteps are such as keep all bits when divided by 1000 and multiplied."""
        generator = torch.Generator().manual_seed(seed)
        kinds = example(self.config, TEXT, (4, height, width))
        condition = kinds.map(lambda row: torch.randn(rows, *row.shape[1:], generator=generator))
        if condition.guidance is not None:
            condition = Condition(condition.context, condition.pooled, guidance=torch.tensor([[1.0], [3.5], [7.0]])[:rows])
        sample = torch.randn(rows, 4, height, width, generator=generator)
        return sample, torch.tensor([[1000.0, 500.0, 250.0], [750.0, 125.0, 62.5]][seed % 2])[:rows], condition

    def own(self, sample: Tensor, timesteps: Tensor, condition: Condition, module: Any = None) -> Tensor:
        module = self.module if module is None else module
        text = {"encoder_hidden_states": condition.context, "pooled_projections": condition.pooled}
        if self.family is SD3:
            made: Tensor = module(sample, timestep=timesteps, **text).sample
            return made
        height, width = (side // 2 for side in sample.shape[-2:])
        ids = places(TEXT, height, width, sample.device)
        scale = None if condition.guidance is None else condition.guidance[:, 0]
        named = {"timestep": timesteps / 1000, "guidance": scale, "txt_ids": ids[:TEXT], "img_ids": ids[TEXT:], **text}
        return unpacked(module(packed(sample), **named).sample, height, width)


@pytest.fixture(scope="module", params=["sd3", "dev", "schnell"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "sd3":
            family, made = SD3, SD3Transformer2DModel(**two_streams.SD3)
        else:
            family, made = FLUX, FluxTransformer2DModel(**two_streams.FLUX, guidance_embeds=request.param == "dev")
        for weight in made.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
    module = made.eval().requires_grad_(False)
    return Case(family, module, family.unrolled(module))


@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=str)
def test_a_full_step_is_the_modules_own_forward(case: Case, size: tuple[int, int]) -> None:
    inputs = case.inputs(0, 3, *size)
    got, kept = case.network.full(*inputs)
    assert torch.equal(got, case.own(*inputs))
    assert not kept


@pytest.mark.parametrize("branch", PAIRS, ids=str)
def test_a_partial_step_on_a_fresh_residual_is_the_full_step(case: Case, branch: Blocks) -> None:
    """Of text the residual has a part where blocks behind the middle read it, on both sides of FLUX's seam and across it."""
    full, kept = case.network.full(*case.inputs(), keep=[branch])
    assert kept[branch].shape[:2] == (3, 16 + TEXT if branch.back else 16)
    torch.testing.assert_close(case.network.partial(*case.inputs(), branch, kept[branch]), full, rtol=0, atol=2e-5)


class Adds(nn.Module):
    """A block in the place of the middle, which adds a residual to both streams, or to the patches alone."""

    context_pre_only = False

    def __init__(self, residual: Tensor) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        image, text = self.residual[:, :16], self.residual[:, 16:]
        return encoder_hidden_states + text if text.shape[1] else encoder_hidden_states, hidden_states + image


@pytest.mark.parametrize("branch", [Blocks(1, 0), Blocks(0, 2), Blocks(1, 1), Blocks(3, 2), Blocks(0, 5)], ids=str)
def test_a_partial_step_is_the_forward_of_the_same_module_without_its_middle(case: Case, branch: Blocks) -> None:
    _, kept = case.network.full(*case.inputs(0), keep=[branch])
    shortened = deepcopy(case.module)
    blocks = [*shortened.transformer_blocks, *getattr(shortened, "single_transformer_blocks", [])]
    short = [*blocks[: branch.front], Adds(kept[branch]), *blocks[6 - branch.back :]]
    shortened.transformer_blocks, shortened.single_transformer_blocks = nn.ModuleList(short), nn.ModuleList()
    got = case.network.partial(*case.inputs(1), branch, kept[branch])
    assert torch.equal(got, case.own(*case.inputs(1), shortened))
    assert not torch.allclose(got, case.own(*case.inputs(1)), atol=1e-2), "or nothing was left out"


def test_rows_of_different_prompts_do_not_look_at_each_other(case: Case) -> None:
    rows_are_alone(case.network, case.inputs(), Blocks(1, 2), atol=5e-5)


def test_what_overflows_in_float16_is_held_at_its_range(case: Case) -> None:
    """A residual is the difference of two streams, each of which FLUX holds there."""
    from engine.families.transformer import _added, _residual

    most = torch.full((1, 2, 4), 65504.0, dtype=torch.float16)
    residual = _residual(Blocks(1, 1), (most, most), (-most, -most))
    assert (residual == 65504).all()
    assert (_added((most, most), residual)[1] == 65504).all()


@pytest.mark.parametrize("case", ["dev"], indirect=True)  # which has all that is given to regions; it takes seconds
def test_compiled_regions_are_the_same(case: Case) -> None:
    short, branch = deepcopy(case.module), Blocks(1, 0)
    short.transformer_blocks, short.single_transformer_blocks = (
        short.transformer_blocks[:1],
        short.single_transformer_blocks[:1],
    )
    plain, compiled = case.family.unrolled(short), case.family.unrolled(short, Compilation("eager").region)
    with torch.inference_mode():
        (want, kept), (got, own_kept) = (one.full(*case.inputs(), keep=[branch]) for one in (plain, compiled))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        torch.testing.assert_close(own_kept[branch], kept[branch], rtol=0, atol=1e-5)
        want, got = (one.partial(*case.inputs(1), branch, kept[branch]) for one in (plain, compiled))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_macs_of_a_partial_step_are_those_that_run(case: Case) -> None:
    counted = count_steps(case.config, (4, 8, 8), TEXT)
    network = case.family.unrolled(meta_network(case.config))
    sample, timesteps, condition = case.inputs(rows=1)
    given = sample.to("meta"), timesteps.to("meta"), condition.to("meta")
    branches = [Blocks(0, 0), Blocks(1, 0), Blocks(0, 1), Blocks(2, 3)]
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        _, kept = network.full(*given, keep=branches)
    assert counted.full.macs == whole.get_total_flops() // 2
    for branch in branches:
        with FlopCounterMode(display=False) as part, torch.no_grad():
            network.partial(*given, branch, kept[branch])
        assert counted.partial[branch].macs == part.get_total_flops() // 2
        assert counted.features[branch] == kept[branch].shape[1:]


DEV = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
LARGE = {
    "_class_name": "SD3Transformer2DModel",
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}


@pytest.mark.parametrize(
    ("config", "side", "tokens", "macs", "parameters"),
    [
        (DEV, 128, 512, 37_192_326_709_248, 11_901_408_320),
        (DEV, 64, 512, 10_751_300_075_520, 11_901_408_320),
        (LARGE, 128, 333, 15_560_557_453_824, 8_056_627_520),
    ],
    ids=["FLUX.1-dev 1024²", "FLUX.1-dev 512²", "SD3.5-large 1024²"],
)
def test_macs_of_the_published_ones(config: dict[str, Any], side: int, tokens: int, macs: int, parameters: int) -> None:
    """Counted on diffusers' modules. FLUX.1-dev: published are 37.195 T (TaylorSeer) and 37.269 T (cache-dit) a step."""
    counted = count_steps(config, (16, side, side), tokens)
    assert (counted.full.macs, counted.parameters) == (macs, parameters)
    patches, width = (side // 2) ** 2, 3072 if config is DEV else 2432
    assert counted.features[Blocks(1, 0)] == (patches, width)
    assert counted.features[Blocks(1, 1)] == (patches + tokens, width)


@pytest.mark.parametrize("branch", [3, Blocks(6, 0), Blocks(3, 3)], ids=str)
def test_what_leaves_no_block_out_or_is_no_pair_is_refused(case: Case, branch: Any) -> None:
    with pytest.raises(InvalidInput, match="this transformer has 6 blocks"):
        case.network.partial(*case.inputs(), branch, torch.zeros(3, 16, 16))


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        (LARGE, {"out_channels": 32}, "out_channels"),
        (LARGE, {"caption_projection_dim": 2400}, "caption_projection_dim"),
        (LARGE, {"sample_size": 129}, "sample_size"),
        (LARGE, {"pos_embed_max_size": 63}, "sample_size"),
        (LARGE, {"num_layers": 0}, "num_layers"),
        (LARGE, {"qk_norm": "softmax"}, "transformer"),
        (LARGE, {"joint_attention_dim": None}, "joint_attention_dim"),
        (DEV, {"in_channels": 66}, "in_channels"),
        (DEV, {"out_channels": 16}, "out_channels"),
        (DEV, {"patch_size": 2}, "patch_size"),
        (DEV, {"axes_dims_rope": [16, 56, 54]}, "axes_dims_rope"),
        (DEV, {"num_layers": 0, "num_single_layers": 0}, "num_layers"),
        (DEV, {"sample_size": 65}, "sample_size"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_by_its_name(base: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        meta_network({**base, **changes})
    assert caught.value.param == field


def test_a_size_beyond_the_table_of_positions_is_refused() -> None:
    with pytest.raises(Unsupported, match="cannot run at 64×64") as caught:
        count_steps({**two_streams.SD3, "_class_name": "SD3Transformer2DModel"}, (4, 64, 64), TEXT)
    assert caught.value.param == "size"
