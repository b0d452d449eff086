"""A wave on the device, and what is to be told of it when it has landed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.device import Fence
from engine.waves import DenoisingTask, Wave
from server.batching.image_task import ImageTask


@dataclass(frozen=True)
class InflightWave:
    """A launched wave. `images`, and `previews` of unfinished images with their numbers, are pixels (3, height, width).

    They are there once `end` is passed.
    """

    wave: Wave
    tasks: dict[DenoisingTask, ImageTask]
    macs: int
    images: dict[ImageTask, Tensor]
    previews: dict[ImageTask, tuple[int, Tensor]]
    decoded: Fence  # behind the images
    end: Fence  # behind everything

    def still_here(self) -> list[ImageTask]:
        """Those whose row is not given up, or begun anew, since the launch."""
        return [task for row, task in self.tasks.items() if task.row is row and not task.left]
