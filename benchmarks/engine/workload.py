"""What a benchmark runs: a model at a size of latents, schedules set by hand, and inputs for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.result import TEACHER
from engine import loading
from engine.branches import all_branches
from engine.condition import Condition
from engine.macs import StepMacs, example
from engine.model import Model
from engine.program import Program
from registry.schedule import Schedule, Segment, SolverName

STEPS = 50  # of the teacher, DDIM
GUIDANCE = 3.0


@dataclass(frozen=True)
class UniformSchedule:
    """`full` equal segments of the 50 steps, each a full step and then partial ones of one branch at these offsets."""

    full: int
    offsets: tuple[int, ...] = ()
    branch: int = 0

    @property
    def name(self) -> str:
        """How results call it."""
        if not self.offsets:
            return TEACHER if self.full == STEPS else f"{self.full} full"
        return f"{self.full} full + {self.full * len(self.offsets)} partial, s={self.branch}"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of its document."""
        segment = Segment(partial=self.offsets, branch=self.branch) if self.offsets else Segment()
        return (segment,) * self.full


UNIFORM = (
    UniformSchedule(STEPS),
    UniformSchedule(10, (1, 2, 3, 4), 1),
    UniformSchedule(10, (2,), 3),
    UniformSchedule(5, (5,), 1),
)


@dataclass(frozen=True)
class Workload:
    """A model to measure, and inputs for it, the same at every call. `scheduler` is diffusers' configuration."""

    model: Model
    scheduler: Mapping[str, Any]

    @property
    def macs(self) -> StepMacs:
        """MACs of one UNet row for each kind of step."""
        return self.model.macs

    def noise(self, rows: int) -> Tensor:
        """Unit noise (rows, c, h, w), float32."""
        generator = torch.Generator().manual_seed(rows)
        return torch.randn(rows, *self.model.latent_shape, generator=generator).to(self.model.device)

    def condition(self, rows: int) -> Condition:
        """Random numbers of the right shapes: time does not depend on what they mean."""
        generator = torch.Generator().manual_seed(rows)

        def numbers(like: Tensor) -> Tensor:
            shape = rows, *like.shape[1:]
            made = (
                torch.randn(shape, generator=generator).to(self.model.dtype) if like.is_floating_point() else torch.zeros(shape)
            )
            return made.to(self.model.device, self.model.dtype if like.is_floating_point() else like.dtype)

        return example(self.model.network.config, self.model.prompts.tokens, self.model.latent_shape).map(numbers)

    def program(self, uniform: UniformSchedule, solver: SolverName = "ddim") -> Program:
        """Compiled for the model."""
        given = self.model.solver(solver, STEPS)
        return self.model.compile(Schedule(model=self.model.ref, solver=given, segments=uniform.segments))

    def runs(self, uniform: UniformSchedule) -> bool:
        """Whether this UNet has so many branches."""
        return uniform.branch in (0, *all_branches(self.model.network.branches))


@dataclass(frozen=True)
class Source:
    """Where the models of a run come from: all in the same folder, on the same device, at the same size.

    latent: height and width of latents, None for the model's own.
    """

    folder: Path
    device: str = "cpu"
    dtype: str = "float32"
    latent: int | None = None

    def workload(self, compiled: bool = False) -> Workload:
        """The model loaded once more, with weights of its own."""
        model = loading.load(self.folder, self.device, self.dtype, compiled=compiled)
        if self.latent is not None:
            model = replace(model, latent_shape=(model.latent_shape[0], self.latent, self.latent))
        return Workload(model, self.scheduler)

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        """The configuration of the folder's scheduler."""
        config: Mapping[str, Any] = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_bytes())
        return config
