"""Latents to images: the last stage, once per image."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from engine.device import to_device, to_host

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Makes images of latents."""

    @property
    def scale(self) -> int:
        """How many pixels an element of a latent is wide and high."""

    @property
    def overflowed(self) -> bool:
        """Whether it runs in float32 because it overflowed in the type that was asked for."""

    def upcast(self) -> bool:
        """Run in float32 from now on, because it overflowed. Returns False where it does already: nothing would change."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, channels, H, W), about −1 to 1. What overflows is not finite."""


@dataclass
class Autoencoder(Decoder):
    """The decoder half of one of diffusers' autoencoders. A VQModel quantises the latents to its codebook first.

    For one thread: `upcast` changes the network in place.
    """

    vae: Any
    overflowed: bool = False

    @property
    @override
    def scale(self) -> int:
        config = self.vae.config  # every block but the last enlarges, by two where an AutoencoderTiny says nothing else
        return int(config.get("upsampling_scaling_factor", 2) ** (len(config.block_out_channels) - 1))

    @override
    def upcast(self) -> bool:
        narrow = self.vae.dtype
        if narrow == torch.float32:
            return False
        try:
            self.vae.float()
        except Exception:  # memory for half of it is worse than for none
            self.vae.to(narrow)
            raise
        self.overflowed = True
        log.warning("the decoder overflows in %s: from now on it runs in float32", str(narrow).removeprefix("torch."))
        return True

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        config, latents = self.vae.config, latents.to(self.vae.dtype)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # some SDXL autoencoders; per channel
            latents = latents * _per_channel(std, latents) / config.scaling_factor + _per_channel(mean, latents)
        else:
            latents = latents / config.scaling_factor  # which training put on them
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return _nan_unless(_whole(latents), images)  # a codebook has a word for everything, and a tanh a limit


def _per_channel(numbers: Sequence[float], latents: Tensor) -> Tensor:
    """One number per channel, (1, c, 1, 1), like these latents."""
    return to_device(torch.tensor(numbers, dtype=latents.dtype), latents.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Pixels(Decoder):
    """Models that denoise pixels: the latent is the image."""

    scale: int = 1
    overflowed: bool = False

    @override
    def upcast(self) -> bool:
        return False

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        return latents


@torch.inference_mode()
def to_images(decoder: Decoder, latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) to images (n, 3, H, W), float32 in [0, 1]; grey becomes three equal channels.

    An image that is not finite is NaN throughout. The images are in the host's memory once a fence behind this call is passed.
    """
    decoded = decoder(latents).float()
    images = to_host(_nan_unless(_whole(decoded), (decoded / 2 + 0.5).clamp(0, 1)))  # clamped, an infinity looks like white
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _whole(tensor: Tensor) -> Tensor:
    """Which parts (c, h, w) of (n, c, h, w) are finite throughout: (n, 1, 1, 1), bool. Asks the device, and does not wait."""
    return tensor.isfinite().flatten(1).all(dim=1).view(-1, 1, 1, 1)


def _nan_unless(good: Tensor, images: Tensor) -> Tensor:
    return images.masked_fill(~good, math.nan)
