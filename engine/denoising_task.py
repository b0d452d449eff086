"""One image in the engine: its program, how far it is, and what it holds while it is in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from engine.denoiser import Denoiser
from engine.fresh_noise import Fresh
from engine.guidance import OFF
from engine.image_size import ImageSize
from engine.program import Program
from engine.program_step import Need, ProgramStep
from engine.source import EncodedSource


@dataclass(eq=False)
class DenoisingTask:
    """One image on its way through its program.

    guidance: the scale of classifier-free guidance, which takes two UNet rows a step; None for one row without it.
    fresh: the image's noises (c, h, w) by place, for a program of a stochastic solver.
    source: the image that it starts from, if it does, there by the time it joins the waves; masked: whether it keeps a part of
    that, which takes a slot.
    network: with LoRAs, called `adapters`; without, it runs on the model's own.
    size: of the image; None is the model's own. chunks: of its context. deadline: in seconds of the policy's clock. yields: it
    runs only in waves of such tasks, while no other task is in flight. stands_back: it yields to others that yield, too.
    position: how many of the program's steps have run. waits: waves that went by since it last ran. slots: while it is in
    flight, one for each of its UNet rows, the conditional one first; kept_slot: that of what it keeps.
    latent (c, h, w): the result, once done. error: why it failed, if it did.
    """

    program: Program  # at the task's own guidance scale
    guidance: float | None = None
    size: ImageSize | None = None
    deadline: float = math.inf
    yields: bool = False
    position: int = 0
    waits: int = 0
    slots: Sequence[int] = ()
    latent: Tensor | None = None
    error: Exception | None = None
    fresh: Fresh | None = None
    chunks: int = 1
    masked: bool = False
    source: EncodedSource | None = None
    stands_back: bool = False
    kept_slot: int | None = None
    network: Denoiser | None = None
    adapters: str = ""

    def __post_init__(self) -> None:
        self.program = self.program.at(OFF if self.guidance is None else self.guidance)

    @property
    def unet_rows(self) -> int:
        """How many UNet rows each step takes."""
        return 1 if self.guidance is None else 2

    @property
    def slot_count(self) -> int:
        """How many slots it holds while it is in flight."""
        return self.unet_rows + self.masked

    @property
    def held(self) -> list[int]:
        """Those that it holds now."""
        return [*self.slots, *([] if self.kept_slot is None else [self.kept_slot])]

    @property
    def done(self) -> bool:
        """Whether every step of the program has run."""
        return self.position == len(self.program.steps)

    @property
    def step(self) -> ProgramStep:
        """The next step to run."""
        return self.program.steps[self.position]

    @property
    def need(self) -> Need:
        """The kind of wave that the next step can join."""
        return self._needs[self.position]

    @property
    def ahead(self) -> list[Need]:
        """What all remaining steps need, the next one first."""
        return self._needs[self.position :]

    @cached_property
    def _needs(self) -> list[Need]:
        return [step.need.at(self.size, self.chunks, self.adapters) for step in self.program.steps]


T = TypeVar("T", bound=DenoisingTask)


def first_in_line(tasks: Sequence[T]) -> Sequence[T]:
    """Those that may run now: none that yields while there is one that does not, and last those that stand back."""
    return [task for task in tasks if not task.yields] or [task for task in tasks if not task.stands_back] or tasks
