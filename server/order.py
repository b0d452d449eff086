"""One image on its way through the engine: what was ordered, how far it is, what comes out."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from engine.macs import StepMacs
from engine.program import Program
from engine.waves import Need, Row
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

    @property
    def unet_rows(self) -> int:
        """2 with classifier-free guidance, else 1."""
        return 1 if self.guidance == 1 else 2

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts of its UNet rows, in order."""
        return (self.prompt,) if self.unet_rows == 1 else (self.negative, self.prompt)


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
    future: Future[Picture] = field(default_factory=Future)

    @property
    def latent(self) -> Tensor:
        """The row's latent (c, h, w)."""
        assert self.row is not None, "the order is not in the engine"
        return self.row.latent

    def ran(self, need: Need, step_macs: StepMacs) -> tuple[int, int]:
        """Note the step that just ran and the null steps jumped over after it. Returns its MACs and the null steps."""
        assert self.row is not None, "a ticket without a row cannot be in a wave"
        steps, position = self.row.program.steps, self.row.position
        end = self.row.program.schedule.solver.teacher_steps if self.row.done else steps[position].index
        macs, null = self.row.unet_rows * step_macs.of(*need), end - steps[position - 1].index - 1
        self.macs += macs
        self.steps.update({need.kind: 1, "null": null})
        return macs, null

    def remaining_macs(self, step_macs: StepMacs) -> int:
        """MACs still to run. Safe to ask from any thread; a step old at worst."""
        position = self.row.position if self.row else 0
        steps = self.order.program.steps[position:]
        return self.order.unet_rows * sum(step_macs.of(step.kind, step.branch) for step in steps)
