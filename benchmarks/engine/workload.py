"""What a benchmark runs: a model folder's UNet, or Stable Diffusion v1.5's with random weights, and inputs for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import loading
from engine.condition import Condition
from engine.macs import StepMacs, count_steps, example
from engine.noise import NoiseLevels
from engine.program import Program, compile_program
from engine.schedulers import noise_levels
from engine.slots import Shape, Slots
from engine.unrolled import UnrolledUNet
from registry.schedule import ModelRef, Schedule, Segment, Solver, teacher

STEPS = 50  # of the teacher, DDIM
SD15_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Workload:
    """A UNet to measure, and inputs for it.

    `latent` (c, h, w); `tokens` is the length of the context, 0 without one; `scheduler` is diffusers' configuration.
    """

    name: str
    network: UnrolledUNet
    levels: NoiseLevels
    scheduler: Mapping[str, Any]
    latent: Shape
    tokens: int

    @cached_property
    def macs(self) -> StepMacs:
        """MACs of one UNet row for each kind of step at this latent size."""
        return count_steps(self.network.unet.config, self.latent, self.tokens)

    def noise(self, rows: int) -> Tensor:
        """Unit noise (rows, c, h, w), the same at every call."""
        return torch.randn(rows, *self.latent, generator=torch.Generator().manual_seed(rows))

    def condition(self, rows: int) -> Condition:
        """Random numbers of the right shapes, the same at every call: time does not depend on what they mean."""
        generator = torch.Generator().manual_seed(rows)
        one = example(self.network.unet.config, self.tokens)

        def floats(like: Tensor | None) -> Tensor | None:
            return None if like is None else torch.randn(rows, *like.shape[1:], generator=generator)

        labels = None if one.labels is None else torch.zeros(rows, dtype=torch.long)
        return Condition(floats(one.context), floats(one.pooled), floats(one.sizes), labels)

    def program(self, full: int, partial: Sequence[int], branch: int) -> Program:
        """The program of a schedule of `full` equal segments, with partial steps at these offsets."""
        return self._compile((Segment(partial=tuple(partial), branch=branch),) * full)

    @cached_property
    def teacher(self) -> Program:
        """The teacher's program: every step full."""
        return self._compile(teacher(self._ref, self._solver).segments)

    def slots(self, capacity: int) -> Slots:
        """Memory for `capacity` UNet rows in flight."""
        condition = example(self.network.unet.config, self.tokens)
        return Slots(self.latent, self.macs.features, condition, capacity, self.network.device, self.network.dtype)

    def _compile(self, segments: tuple[Segment, ...]) -> Program:
        schedule = Schedule(model=self._ref, solver=self._solver, segments=segments)
        return compile_program(schedule, self.levels, self.network.branches)

    @property
    def _ref(self) -> ModelRef:
        family = loading.FAMILIES[type(self.network.unet).__name__]
        return ModelRef(name="bench", family=family, fingerprint=f"sha256:{0:064}")

    @property
    def _solver(self) -> Solver:
        return self.levels.solver("ddim", STEPS)


def of_folder(folder: Path) -> Workload:
    """The model of a diffusers pipeline folder, on the CPU in float32."""
    model = loading.load(folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
    return Workload(model.ref.name, model.network, model.levels, scheduler, model.latent_shape, model.prompts.tokens)


def stable_diffusion_15() -> Workload:
    """Stable Diffusion v1.5's UNet (diffusers' default apart from the width of the context) at a 16×16 latent: 3.4 GB."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().requires_grad_(False)
    return Workload("sd15, random weights", UnrolledUNet(unet), noise_levels(SD15_SCHEDULER), SD15_SCHEDULER, (4, 16, 16), 77)
