"""One computed step of a program, what it asks of the network, and what a correction makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from engine.image_size import ImageSize
from registry.corrections import Correction
from registry.schedule import Branch


class Need(NamedTuple):
    """What a step asks of the network: ("full", 0) or ("partial", branch), at a size of images; None is the model's own.

    `chunks`: of the context, as long prompts take several. `adapters`: which LoRAs the weights have; "" are the model's own.
    Images whose next steps need the same share a call.
    """

    kind: str
    branch: Branch
    size: ImageSize | None = None
    chunks: int = 1
    adapters: str = ""

    def at(self, size: ImageSize | None, chunks: int = 1, adapters: str = "") -> Need:
        """The same at a size, with so many chunks of context, on the weights with these LoRAs."""
        return self._replace(size=size, chunks=chunks, adapters=adapters)


@dataclass(frozen=True)
class ProgramStep:
    """One computed step.

    `index` is its place in the teacher's trajectory; a full step's `branch` says which feature to keep for the partial steps
    after it (0: none), `extrapolation` is the weight with which that is extrapolated (`engine.extrapolation`). The numbers are
    those of the two equations of `engine.program`; `guidance` is a factor on the request's guidance scale; `noise` is that of
    the fresh noise that is added, and `lands` the place in the teacher's trajectory whose it is. `signal` and `sigma` are the
    level where the step lands, to which what is kept of a source is noised; after the last step it is the source itself, as in
    diffusers.
    """

    index: int
    kind: Literal["full", "partial"]
    branch: Branch
    timestep: float
    clean_x: float
    clean_m: float
    clip: float
    next_x: float
    next_m: float
    next_0: float
    next_1: float
    guidance: float = 1.0
    extrapolation: float = 0.0
    noise: float = 0.0
    lands: int = 0
    signal: float = 1.0
    sigma: float = 0.0

    @cached_property
    def need(self) -> Need:
        """The kind of UNet call that can run this step."""
        return Need("full", 0) if self.kind == "full" else Need("partial", self.branch)

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Those of the equations, after the timestep: clean_x, clean_m, clip, next_x, next_m, next_0, next_1."""
        solver = (self.clean_x, self.clean_m, self.clip, self.next_x, self.next_m, self.next_0, self.next_1)
        return (self.timestep, *solver)


def corrected(step: ProgramStep, by: Correction) -> ProgramStep:
    """The step with a schedule's correction in its numbers."""
    return replace(
        step,
        next_x=step.next_x + by.latent,
        next_m=step.next_m + by.output,
        next_1=step.next_1 + by.before,
        guidance=by.guidance,
        extrapolation=by.extrapolation,
    )
