"""One image on its way through the engine: what was ordered, how far it is, what comes out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from engine.macs import StepMacs
from engine.program import Need, Program
from engine.waves import DenoisingTask
from server.telemetry.metrics import CUSTOM, NO_ARM
from server.telemetry.tracing import NO_TRACE, ImageTrace


@dataclass(frozen=True)
class ImageSpec:
    """Everything that decides the image's pixels, and under which names its work is counted and admitted.

    `key_seconds` bounds the predicted seconds of work that its API key may have in the queue. `previews`: how many pictures
    of the unfinished image are wanted. Log lines about it say its `request_id`.
    """

    program: Program
    prompt: str
    negative: str
    guidance: float
    seed: int
    tier: str = CUSTOM
    arm: str = NO_ARM
    deadline: float = math.inf  # of a monotonic clock, in seconds
    key: str = "anonymous"
    key_seconds: float | None = None
    previews: int = 0
    teacher_macs: int = 0  # of the same image, had the teacher made it
    request_id: str = ""
    idle: bool = False  # only for what the engine does while no client waits

    @property
    def unet_rows(self) -> int:
        """2 with classifier-free guidance, else 1."""
        return 1 if self.guidance == 1 else 2


Preview = Callable[[ImageSpec, int, Tensor], None]
"""Told the order, which preview of its image it is (0-based), and the pixels (3, height, width)."""


@dataclass(frozen=True)
class ImageResult:
    """A finished image and what it took. pixels (3, height, width), float in [0, 1]; times in seconds."""

    pixels: Tensor
    macs: int
    steps: Counter[str]
    queue_seconds: float
    denoise_seconds: float


@dataclass(eq=False)
class ImageTask:
    """An order in the dispatcher's hands. Times are of a monotonic clock, in seconds.

    `macs_before[p]` are the MACs of the steps before position p; its last entry is the whole image's. The future is a
    `concurrent.futures.Future`, because it may be cancelled in one thread and resolved in another.
    """

    spec: ImageSpec
    queued: float
    macs_before: Sequence[int]
    preview: Preview | None = None
    taken: float = 0.0
    denoised: float = 0.0
    settled: int = 0  # MACs that admission counts no longer
    steps: Counter[str] = field(default_factory=Counter)
    row: DenoisingTask | None = None
    journey: ImageTrace = NO_TRACE
    left: bool = False  # the dispatcher is done with it
    waits: int = 0  # a policy asks, and a ticket that is not in the engine yet lets no wave go by
    future: Future[ImageResult] = field(default_factory=Future)

    @property
    def tier(self) -> str:
        """Whose share of the MACs it takes."""
        return self.spec.tier

    @property
    def deadline(self) -> float:
        """When the picture must be there."""
        return self.spec.deadline

    @property
    def unet_rows(self) -> int:
        """Of each step."""
        return self.spec.unet_rows

    @property
    def need(self) -> Need:
        """Of the first step."""
        return self.ahead[0]

    @cached_property
    def ahead(self) -> list[Need]:
        """Of all steps, before the first."""
        return [step.need for step in self.spec.program.steps]

    @cached_property
    def preview_at(self) -> dict[int, int]:
        """{position: preview}: evenly spread, none at the end, and no more of them than there are steps between."""
        steps, wanted = len(self.spec.program.steps), self.spec.previews
        places = dict.fromkeys(steps * (i + 1) // (wanted + 1) for i in range(wanted))
        return {position: i for i, position in enumerate(p for p in places if 0 < p < steps)}

    @property
    def position(self) -> int:
        """Steps done."""
        return self.row.position if self.row else 0

    @property
    def macs(self) -> int:
        """MACs run."""
        return self.macs_before[self.position]

    @property
    def remaining_macs(self) -> int:
        """MACs still to run. Safe to ask from any thread; a step old at worst."""
        return self.macs_before[-1] - self.macs

    def restart(self) -> None:
        """Back to before the first step: what ran is lost."""
        self.row, self.taken, self.denoised = None, 0.0, 0.0
        self.steps.clear()

    def next_macs(self, steps: int) -> int:
        """MACs of the next so many steps. After its last one, another of its kind is taken to have come in its place."""
        position, length, whole = self.position, len(self.macs_before) - 1, self.macs_before[-1]
        later = max(position + steps - length, 0)
        return self.macs_before[position + steps - later] - self.macs_before[position] + later * whole // length

    @property
    def latent(self) -> Tensor:
        """The finished latent (c, h, w)."""
        assert self.row is not None, "the order is not in the engine"
        assert self.row.latent is not None, "the order is not denoised yet"
        return self.row.latent

    def ran(self, need: Need) -> tuple[int, int]:
        """Note the step that just ran and the null steps jumped over after it. Returns its MACs and the null steps."""
        assert self.row is not None, "a ticket without a row cannot be in a wave"
        steps, position = self.row.program.steps, self.row.position
        end = self.row.program.schedule.solver.teacher_steps if self.row.done else steps[position].index
        null = end - steps[position - 1].index - 1
        self.steps.update({need.kind: 1, "null": null})
        return self.macs_before[position] - self.macs_before[position - 1], null


def macs_before(spec: ImageSpec, step_macs: StepMacs) -> list[int]:
    """For each position, the MACs of the steps before it, guidance rows included."""
    steps = (spec.unet_rows * step_macs.of(step.kind, step.branch) for step in spec.program.steps)
    return list(accumulate(steps, initial=0))
