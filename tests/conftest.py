"""Fixtures that every room's tests may use. Nothing heavy is imported until a test asks for it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# Before torch is imported by anyone: two threads beside a busy process are several times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from engine.model import Model

settings.register_profile("flexi", deadline=None, print_blob=True)
settings.load_profile("flexi")

ROOT = Path(__file__).resolve().parents[1]

TINY: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 6,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last lines: what was skipped, and how to have it, which each reason says. Of several processes one says it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ()))
    for reason, tests in reasons.items():
        reporter.write_line(f"skipped {tests} test{'s' * (tests > 1)}: {reason}")


@pytest.fixture(scope="session")
def model() -> Model:
    """The bundled model on the CPU. Its weights may be retrained: test its shape and behaviour, never its pixels."""
    import torch

    from engine.loading import load

    torch.set_num_threads(1)
    return load(ROOT / "models" / "emoji64")


@pytest.fixture(scope="session")
def tiny_config() -> Mapping[str, Any]:
    """The configuration of `tiny`; a test may build variants of it."""
    return TINY


@pytest.fixture(scope="session")
def tiny(tiny_config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A text-conditional UNet of four branches with random weights; some milliseconds a call. Latents are (4, 8, 8)."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**tiny_config).eval().requires_grad_(False)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' pipelines encode images to the mode of what the encoder says, as ours do; by themselves they draw."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
