"""One image on its way through the engine: what was ordered, how far it is, what comes out."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from engine.macs import StepMacs
from engine.program import Need, Program
from engine.waves import Row
from server.metrics import CUSTOM, NO_ARM


@dataclass(frozen=True)
class Order:
    """Everything that decides the image's pixels, and the labels under which its work is counted."""

    program: Program
    prompt: str
    negative: str
    guidance: float
    seed: int
    tier: str = CUSTOM
    arm: str = NO_ARM
    deadline: float = math.inf  # of a monotonic clock, in seconds

    @property
    def unet_rows(self) -> int:
        """2 with classifier-free guidance, else 1."""
        return 1 if self.guidance == 1 else 2


@dataclass(frozen=True)
class Picture:
    """A finished image and what it took. pixels (3, height, width), float in [0, 1]; times in seconds."""

    pixels: Tensor
    macs: int
    steps: Counter[str]
    queue_seconds: float
    denoise_seconds: float


@dataclass(eq=False)
class Ticket:
    """An order in the dispatcher's hands. Times are of a monotonic clock, in seconds.

    The future is a `concurrent.futures.Future`, because it may be cancelled in one thread and resolved in another.
    """

    order: Order
    queued: float
    taken: float = 0.0
    denoised: float = 0.0
    macs: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    row: Row | None = None
    waits: int = 0  # a policy asks, and a ticket that is not in the engine yet lets no wave go by
    future: Future[Picture] = field(default_factory=Future)

    @property
    def tier(self) -> str:
        """Whose share of the MACs it takes."""
        return self.order.tier

    @property
    def deadline(self) -> float:
        """When the picture must be there."""
        return self.order.deadline

    @property
    def unet_rows(self) -> int:
        """Of each step."""
        return self.order.unet_rows

    @property
    def need(self) -> Need:
        """Of the first step."""
        return self.ahead[0]

    @cached_property
    def ahead(self) -> list[Need]:
        """Of all steps, before the first."""
        return [step.need for step in self.order.program.steps]

    @property
    def latent(self) -> Tensor:
        """The finished latent (c, h, w)."""
        assert self.row is not None, "the order is not in the engine"
        assert self.row.latent is not None, "the order is not denoised yet"
        return self.row.latent

    def ran(self, need: Need, step_macs: StepMacs) -> tuple[int, int]:
        """Note the step that just ran and the null steps jumped over after it. Returns its MACs and the null steps."""
        assert self.row is not None, "a ticket without a row cannot be in a wave"
        steps, position = self.row.program.steps, self.row.position
        end = self.row.program.schedule.solver.teacher_steps if self.row.done else steps[position].index
        macs, null = self.order.unet_rows * step_macs.of(*need), end - steps[position - 1].index - 1
        self.macs += macs
        self.steps.update({need.kind: 1, "null": null})
        return macs, null

    def remaining_macs(self, step_macs: StepMacs) -> int:
        """MACs still to run. Safe to ask from any thread; a step old at worst."""
        position = self.row.position if self.row else 0
        steps = self.order.program.steps[position:]
        return self.order.unet_rows * sum(step_macs.of(step.kind, step.branch) for step in steps)
