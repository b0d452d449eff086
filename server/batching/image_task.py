"""One image in the server: what was asked for, how far it is, what comes out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from engine.denoising_task import DenoisingTask
from engine.image_size import ImageSize
from engine.macs import StepMacs
from engine.model import Model
from engine.program import Program
from engine.program_step import Need
from engine.prompt_syntax import PLAIN, PromptSyntax
from engine.source import SourceImage
from server.loras.adapter_set import BASE, AdapterSet
from server.telemetry.metrics import CUSTOM, NO_ARM
from server.telemetry.tracing import NO_TRACE, ImageTrace


@dataclass(frozen=True, eq=False)
class Edit:
    """What an image starts from, and how much of it is made anew.

    image_key, key: by what the encoded image is kept, and what is around its mask. image, mask: digests of the files.
    """

    source: SourceImage
    strength: float
    image_key: str
    key: str
    image: str
    mask: str

    @property
    def size(self) -> ImageSize:
        """Of the image, as of what is made of it."""
        return ImageSize(*self.source.pixels.shape[:2])

    def program(self, whole: Program) -> Program:
        """What it runs of a program. Raises `InvalidInput` for a strength that leaves nothing."""
        return self.source.started(whole, self.strength)


@dataclass(frozen=True)
class ImageSpec:
    """Everything that decides the image's pixels, and under which names its work is counted and admitted.

    size: None is the model's own. chunks: of the context, as many as the longer of the two prompts takes. adapters: the LoRAs
    that the model's weights have for it. `edit`: what it starts from, if that is an image; `keeps`: each step blends a part of
    it in, which takes a slot.
    `key_seconds` bounds the predicted seconds of work that its API key may have in the queue. `previews`: how many previews
    of the unfinished image are wanted. Log lines about it say its `request_id`.
    """

    program: Program
    prompt: str
    negative: str
    guidance: float
    seed: int
    size: ImageSize | None = None
    tier: str = CUSTOM
    arm: str = NO_ARM
    deadline: float = math.inf  # of a monotonic clock, in seconds
    key: str = "anonymous"
    key_seconds: float | None = None
    previews: int = 0
    teacher_macs: int = 0  # of the same image, had the teacher made it
    request_id: str = ""
    background: bool = False  # somebody wants it, and it waits while there is any other client's work
    idle: bool = False  # only for what the engine does while nobody waits
    edit: Edit | None = None
    keeps: bool = False
    embedded: bool = False  # the guidance scale is an input of the UNet, as of latent consistency models
    chunks: int = 1
    syntax: PromptSyntax = PLAIN  # of both prompts
    adapters: AdapterSet = BASE

    @property
    def unet_rows(self) -> int:
        """UNet rows a step: 2 with classifier-free guidance, else 1."""
        return 1 if self.guidance == 1 or self.embedded else 2

    @property
    def yields(self) -> bool:
        """Whether it runs only in waves of its like, while no client's image is in flight."""
        return self.idle or self.background


Preview = Callable[[ImageSpec, int, Tensor], None]
"""Called with the spec, which preview of its image it is (0-based), and its levels (height, width, 3), uint8."""

Progress = Callable[[ImageSpec, int], None]
"""Called with the spec, and how many of its computed steps are behind it."""


@dataclass(frozen=True)
class ImageResult:
    """A finished image and what it took. pixels (height, width, 3): levels, uint8; times in seconds.

    wave_seconds: of all waves that it was in, which it may have shared with others.
    """

    pixels: Tensor
    macs: int
    steps: Counter[str]
    queue_seconds: float
    denoise_seconds: float
    wave_seconds: float = 0.0


class ImageTask(DenoisingTask):
    """The one record of an image from the moment it is queued until it leaves. Times are of a monotonic clock, in seconds.

    adapted: the model with the LoRAs of its spec, where there are any; it stays in memory as long as somebody has it.
    `macs_before[p]` are the MACs of the steps before position p; its last entry is the whole image's. The future is a
    `concurrent.futures.Future`, because it may be cancelled in one thread and resolved in another.
    """

    def __init__(
        self,
        spec: ImageSpec,
        queued: float,
        macs_before: Sequence[int],
        preview: Preview | None = None,
        trace: ImageTrace = NO_TRACE,
        future: Future[ImageResult] | None = None,
        adapted: Model | None = None,
        progress: Progress | None = None,
    ) -> None:
        guidance = spec.guidance if spec.unet_rows == 2 else None
        super().__init__(spec.program.at(spec.guidance), guidance, spec.size, spec.deadline, spec.yields, chunks=spec.chunks)
        self.masked = spec.keeps
        self.stands_back = spec.idle  # its seconds are to be its own, and background work is wanted
        self.adapted = adapted
        if adapted:
            self.network, self.adapters = adapted.network, spec.adapters.key
        self.spec = spec
        self.queued = queued
        self.macs_before = macs_before
        self.preview = preview
        self.progress = progress
        self.landed = 0  # computed steps whose waves have ended; `position` is of launches
        self.trace = trace
        self.future = future or Future[ImageResult]()
        self.steps = Counter[str]()  # run, and null steps jumped over, by kind
        self.taken = 0.0  # when the engine took it in
        self.denoised = 0.0  # when its newest step was done
        self.wave_seconds = 0.0  # of the waves that it was in
        self.settled = 0  # MACs that admission counts no longer
        self.left = False  # the engine's thread is done with it

    def again(self) -> ImageTask:
        """The same image from its beginning, for the same future: what ran of this task is lost."""
        return ImageTask(
            self.spec,
            self.queued,
            self.macs_before,
            self.preview,
            self.trace,
            self.future,
            self.adapted,
            self.progress,
        )

    @property
    def tier(self) -> str:
        """Whose share of the MACs it takes."""
        return self.spec.tier

    @cached_property
    def preview_at(self) -> dict[int, int]:
        """{position: preview}."""
        return {place: i for i, place in enumerate(preview_places(len(self.program.steps), self.spec.previews))}

    @property
    def macs(self) -> int:
        """MACs of the steps that ran."""
        return self.macs_before[self.position]

    @property
    def remaining_macs(self) -> int:
        """MACs still to run. Safe to ask from any thread; a step old at worst."""
        return self.macs_before[-1] - self.macs

    def next_macs(self, steps: int) -> int:
        """MACs of the next so many steps. After its last one, another of its kind is taken to have come in its place."""
        position, length, whole = self.position, len(self.macs_before) - 1, self.macs_before[-1]
        later = max(position + steps - length, 0)
        return self.macs_before[position + steps - later] - self.macs_before[position] + later * whole // length

    def ran(self, need: Need) -> tuple[int, int]:
        """Note the step that just ran and the null steps jumped over after it. Returns its MACs and the null steps."""
        steps, position = self.program.steps, self.position
        end = self.program.schedule.solver.teacher_steps if self.done else steps[position].index
        null = end - steps[position - 1].index - 1
        self.steps.update({need.kind: 1, "null": null})
        return self.macs_before[position] - self.macs_before[position - 1], null

    def result(self, pixels: Tensor) -> ImageResult:
        """What the task came to, once its levels (height, width, 3) are there."""
        waited, denoising = self.taken - self.queued, self.denoised - self.taken
        return ImageResult(pixels, self.macs, self.steps, waited, denoising, self.wave_seconds)


def preview_places(steps: int, wanted: int) -> list[int]:
    """The positions, of so many steps, at which previews are made: evenly spread, none at the end.

    They are fewer than wanted where there are not as many steps between.
    """
    places = dict.fromkeys(steps * (i + 1) // (wanted + 1) for i in range(wanted))
    return [place for place in places if 0 < place < steps]


def macs_before(spec: ImageSpec, step_macs: StepMacs) -> list[int]:
    """For each position, the MACs of the steps before it, guidance rows included."""
    steps = (spec.unet_rows * step_macs.of(step.kind, step.branch) for step in spec.program.steps)
    return list(accumulate(steps, initial=0))
