"""A wave on the device, and what is handed out when it has landed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from engine.device import Fence
from engine.waves import Wave
from server.batching.image_task import ImageTask


class WaveTimes(NamedTuple):
    """When the device began a wave, ended its UNet call, and had decoded its images, on the host's monotonic clock."""

    begun: float
    denoised: float
    decoded: float


class InflightPreview(NamedTuple):
    """Preview `number` (0-based) of an image: its clean latent (c, h, w), and pixels (3, height, width)."""

    number: int
    clean: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class InflightWave:
    """A launched wave, and the decoding behind it.

    macs: of all its tasks together. images: pixels (3, height, width) of those it finishes. previews: of those it does not.
    Pixels are there once `end` is passed; those of an image that is not finite are all NaN.
    """

    wave: Wave[ImageTask]
    macs: int
    images: Mapping[ImageTask, Tensor]
    previews: Mapping[ImageTask, InflightPreview]
    decoded: Fence  # behind the images
    end: Fence  # behind everything

    def times(self, ended: float) -> WaveTimes:
        """On the host's clock, when the device passed `end` at this time: the device measures only its own intervals."""
        denoised = ended - self.end.since(self.wave.end)
        return WaveTimes(denoised - self.wave.seconds, denoised, denoised + self.decoded.since(self.wave.end))
