"""A wave on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.device import Fence
from engine.waves import Wave
from server.batching.decodes import Undecoded
from server.batching.image_task import ImageTask


@dataclass(frozen=True)
class InflightWave:
    """A launched wave, and what is to be decoded once it has landed, besides the images that it finishes.

    macs: of all its tasks together. previews: clean latents of tasks that want to show them.
    """

    wave: Wave[ImageTask]
    macs: int
    previews: Sequence[Undecoded]
    end: Fence  # behind the wave, and the copies of those latents
