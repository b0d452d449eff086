"""How near images are to the teacher's of the same prompt and noise: one by one, and the newest together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.device import exclusive
from evaluation import Features, frechet_distance, psnr

WINDOW = 512  # newest images that a running rFID is of
FEWEST = 64  # and how many it takes at least
EVERY = 16  # images between two computations of it

Extractor = Callable[[Tensor], Features]
"""(n, 3, h, w) in [0, 1] -> (n, d)."""


@dataclass(frozen=True)
class TeacherComparison:
    """One image against the teacher's. psnr in dB; distance: Euclidean, between the images' features, where there are any.

    rfid: the running one of the images that it belongs to, where this image caused it to be computed anew.
    """

    psnr: float
    distance: float | None = None
    rfid: float | None = None


@dataclass(frozen=True)
class MeasuredImage:
    """An image against the teacher's, as `TeacherComparison`; features: its own and the teacher's, each (d,)."""

    psnr: float
    distance: float | None = None
    features: tuple[Features, Features] | None = None


def measure(images: Sequence[Tensor], teachers: Tensor, extractor: Extractor | None) -> list[MeasuredImage]:
    """Levels (height, width, 3) of images made of one noise, against the teacher's. Blocks."""
    *ours, reference = torch.stack([*images, teachers]).movedim(-1, -3) / 255
    qualities = [psnr(float(((image - reference).double() ** 2).mean())) for image in ours]
    if extractor is None:
        return [MeasuredImage(quality) for quality in qualities]
    with exclusive():  # the extractor may be on the engine's device
        *own, wanted = extractor(torch.stack([*ours, reference]))
    return [
        MeasuredImage(quality, float(np.linalg.norm(mine - wanted)), (mine, wanted))
        for quality, mine in zip(qualities, own, strict=True)
    ]


@dataclass
class FeatureWindow:
    """The newest images' features and those of the teacher's; of one schedule, or one pair of schedules, only."""

    of: str
    ours: deque[Features] = field(default_factory=lambda: deque(maxlen=WINDOW))
    teachers: deque[Features] = field(default_factory=lambda: deque(maxlen=WINDOW))
    seen: int = 0

    def add(self, ours: Features, teachers: Features) -> float | None:
        """The running rFID, each time it is computed anew."""
        self.ours.append(ours)
        self.teachers.append(teachers)
        self.seen += 1
        if len(self.ours) < FEWEST or self.seen % EVERY:
            return None
        return frechet_distance(np.stack(self.ours), np.stack(self.teachers))


class Fidelities:
    """Holds images against the teacher's, one after another: the extractor and the windows are one thread's at a time."""

    def __init__(self, extractor: Extractor | None) -> None:
        self._extractor = extractor
        self._windows: dict[tuple[str, ...], FeatureWindow] = {}
        self._measuring = asyncio.Lock()

    async def compare(
        self, images: Sequence[Tensor], teachers: Tensor, windows: Sequence[tuple[str, ...]], of: str
    ) -> list[TeacherComparison]:
        """Levels (height, width, 3) of images made of one noise, against the teacher's.

        windows: for each image, of which its features become a part. of: the digests by which all were made: a window begins
        anew where they change. Measures beside the event loop.
        """
        async with self._measuring:
            return await asyncio.to_thread(self._compare, images, teachers, windows, of)

    def _compare(
        self, images: Sequence[Tensor], teachers: Tensor, windows: Sequence[tuple[str, ...]], of: str
    ) -> list[TeacherComparison]:
        measured = measure(images, teachers, self._extractor)
        return [self._compared(image, window, of) for image, window in zip(measured, windows, strict=True)]

    def _compared(self, image: MeasuredImage, name: tuple[str, ...], of: str) -> TeacherComparison:
        if image.features is None:
            return TeacherComparison(image.psnr)
        window = self._windows.get(name)
        if window is None or window.of != of:
            window = self._windows[name] = FeatureWindow(of)
        return TeacherComparison(image.psnr, image.distance, window.add(*image.features))
