"""The two counts against published tables, against torch's own counter on a real UNet, and against arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from places import ROOT
from server_model import small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.condition import Condition
from engine.image_size import ImageSize
from engine.macs import StepMacs, count_steps, meta_network
from engine.model import Model
from engine.unrolled import UnrolledUNet
from registry.errors import Unsupported
from registry.schedule import Schedule, Segment, teacher

DATA = ROOT / "tests" / "data"


@contextmanager
def torchs_count() -> Iterator[FlopCounterMode]:
    """torch's counter over a real run. It has no formula for the CPU's flash attention, so attention runs as plain products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        yield flops


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / name).read_text())
    return config


@pytest.fixture(scope="module")
def sd15() -> StepMacs:
    return count_steps(config_of("sd15-unet.json"), (4, 64, 64), 77)


@pytest.fixture(scope="module")
def ldm4g() -> StepMacs:
    return count_steps(config_of("ldm4g-unet.json"), (3, 64, 64), 1)


def test_stable_diffusion_full_step_is_the_published_one(sd15: StepMacs) -> None:
    assert sd15.parameters == 859_520_964
    assert sd15.full.paper_macs == 338_831_618_304
    assert sd15.full.macs == 401_636_720_640


def test_stable_diffusion_partial_steps_are_the_published_ones(sd15: StepMacs) -> None:
    published = [20.7156, 57.3285, 98.1382, 132.7276, 167.7164, 208.5784, 243.2370, 278.3672, 315.1752]
    assert [round(sd15.partial[s].paper_macs / 1e9, 4) for s in range(1, 10)] == published


def test_stable_diffusion_attention_products_are_the_published_ones(sd15: StepMacs) -> None:
    """q·k and weights·v of the outermost decoder item and its encoder: two blocks of self- and cross-attention at 64×64.

    Biases and norms are in paper_macs only, hence a little less than the published 10.94 and 63.03 G.
    """
    assert (sd15.partial[1].macs - sd15.partial[1].paper_macs) / 1e9 == pytest.approx(10.94, rel=0.01)
    assert (sd15.full.macs - sd15.full.paper_macs) / 1e9 == pytest.approx(63.03, rel=0.01)


def test_ldm_full_step_is_the_published_one(ldm4g: StepMacs) -> None:
    assert ldm4g.parameters == 400_920_579
    assert ldm4g.full.paper_macs == 99_862_346_880
    assert round(ldm4g.full.macs / 1e9, 4) == 104.2272


def test_ldm_partial_step_is_the_published_one(ldm4g: StepMacs) -> None:
    """The published counter misses the norms of the resnet and the head, a class of LDM's own: 2 per element."""
    missed = 2 * 64 * 64 * (384 + 192 + 192)
    assert round((ldm4g.partial[1].paper_macs - missed) / 1e9, 4) == 4.4254


@pytest.mark.parametrize(("interval", "published"), [(1, 99.82), (2, 52.12), (3, 36.48), (5, 23.50)])
def test_deepcache_averages_on_ldm_are_the_published_ones(ldm4g: StepMacs, interval: int, published: float) -> None:
    full = -(-250 // interval)
    average = (full * ldm4g.full.paper_macs + (250 - full) * ldm4g.partial[1].paper_macs) / 250
    assert average / 1e9 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_the_meta_count_is_what_really_runs(tiny: UNet2DConditionModel, size: tuple[int, int]) -> None:
    counted = count_steps(tiny.config, (4, *size), 5)
    network, sample = UnrolledUNet(tiny), torch.randn(1, 4, *size)
    context, timesteps = torch.randn(1, 5, 6), torch.tensor([7])
    with torchs_count() as whole:
        tiny(sample, timesteps, context)
    assert counted.full.macs == whole.get_total_flops() / 2
    assert counted.parameters == sum(p.numel() for p in tiny.parameters())
    assert list(counted.partial) == [1, 2, 3, 4]
    _, kept = network.full(sample, timesteps, Condition(context), keep=counted.partial)
    for branch, macs in counted.partial.items():
        with torchs_count() as part:
            network.partial(sample, timesteps, Condition(context), branch, kept[branch])
        assert macs.macs == part.get_total_flops() / 2


@pytest.mark.parametrize(
    "changes", [{}, {"use_linear_projection": True, "transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4)}]
)
def test_macs_of_a_longer_context_are_those_counted_at_that_length(
    tiny_config: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    """In both conventions, and in every branch: what is computed of a token does not depend on the others' number."""
    config = {**tiny_config, **changes, "_class_name": "UNet2DConditionModel"}
    short, long = (count_steps(config, (4, 8, 6), tokens) for tokens in (5, 15))
    assert short.longer(10) == long
    assert long.full.macs > short.full.macs
    assert short.longer(0) == short


def test_an_unconditional_unet_is_counted_too() -> None:
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    }
    unet = UNet2DModel.from_config(config).eval()
    with torchs_count() as whole:
        unet(torch.randn(1, 3, 8, 8), torch.tensor([7]))
    assert count_steps(config, (3, 8, 8), 0).full.macs == whole.get_total_flops() / 2


def test_a_deeper_branch_costs_more_and_never_as_much_as_a_full_step(sd15: StepMacs, ldm4g: StepMacs) -> None:
    for counted in (sd15, ldm4g):
        steps = [*counted.partial.values(), counted.full]
        assert len(steps) == 13, "twelve branches"
        for cheaper, dearer in pairwise(steps):
            assert cheaper.macs < dearer.macs
            assert cheaper.paper_macs < dearer.paper_macs


def test_the_paper_count_by_hand() -> None:
    """One level, one resnet a side, no middle, no attention: few enough modules to add up on paper."""
    config = {
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (4,),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "mid_block_type": None,
        "norm_num_groups": 2,
        "cross_attention_dim": 4,
    }
    pixels = 3 * 5
    conv = lambda c, d, taps=9: pixels * d * (taps * c + 1)  # noqa: E731
    norm = lambda c: 2 * pixels * c  # noqa: E731
    linear = lambda c, d: c * d + d  # noqa: E731
    time, head = linear(4, 16) + linear(16, 16), norm(4) + conv(4, 2)
    down = norm(4) + conv(4, 4) + linear(16, 4) + norm(4) + conv(4, 4)
    up = norm(8) + conv(8, 4) + linear(16, 4) + norm(4) + conv(4, 4) + conv(8, 4, taps=1)
    counted = count_steps(config, (2, 3, 5), 1)
    assert counted.full.paper_macs == time + conv(2, 4) + down + 2 * up + head
    assert counted.partial[1].paper_macs == time + conv(2, 4) + up + head


def test_a_program_costs_the_sum_of_its_steps(model: Model) -> None:
    segments = (Segment(partial=(1, 4), branch=3), Segment(partial=(2,), branch=1))
    solver = model.solver("dpmsolver++", 10)
    program = model.compile(Schedule(model=model.ref, solver=solver, segments=segments))
    macs = model.macs
    expected = 2 * macs.full.macs + 2 * macs.partial[3].macs + macs.partial[1].macs
    assert macs.of_program(program, 1) == expected
    assert macs.of_program(program, 2) == 2 * expected
    reference = model.compile(teacher(model.ref, solver))
    assert macs.relative(program, reference) == expected / (10 * macs.full.macs)


def test_the_teacher_costs_exactly_the_teacher(model: Model) -> None:
    program = model.compile(teacher(model.ref, model.solver("ddim", 20)))
    assert model.macs.relative(program, program) == 1


def test_the_bundled_model_is_counted_at_its_own_size(model: Model) -> None:
    condition = model.encode(["cat"])
    with torchs_count() as whole:
        model.network.full(model.noise(0)[None], torch.tensor([7]), condition)
    assert model.macs.full.macs == whole.get_total_flops() / 2


def test_each_size_is_counted_as_it_runs(tiny: UNet2DConditionModel) -> None:
    model, size = small_model(tiny), ImageSize(12, 8)
    condition, noise = model.encode(["cat"], size=size), model.noise(0, size)[None]
    with torchs_count() as whole:
        _, features = model.network.full(noise, torch.tensor([7]), condition, keep={3})
    with torchs_count() as part:
        model.network.partial(noise, torch.tensor([7]), condition, 3, features[3])
    counted = model.macs_at(size)
    assert counted.full.macs == whole.get_total_flops() / 2
    assert counted.partial[3].macs == part.get_total_flops() / 2
    assert counted.features[3] == features[3].shape[1:]
    assert model.macs_at(None) is model.macs


def test_counting_needs_no_memory_for_weights(tiny_config: Mapping[str, Any]) -> None:
    assert {p.device.type for p in meta_network(tiny_config).parameters()} == {"meta"}


@pytest.mark.parametrize(
    "changes", [{"_class_name": "UNet3DConditionModel"}, {"down_block_types": ("DownBlock2D", "NoSuchBlock2D")}]
)
def test_another_kind_of_unet_is_refused(tiny_config: Mapping[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        meta_network({**tiny_config, **changes})
    assert caught.value.param == "unet"
