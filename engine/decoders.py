"""Latents to images: the last stage, once per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from engine.device import to_device, to_host


class Decoder(Protocol):
    """Makes images of latents."""

    @property
    def scale(self) -> int:
        """How many pixels an element of a latent is wide and high."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, channels, H, W), about −1 to 1."""


@dataclass(frozen=True)
class Autoencoder(Decoder):
    """The decoder half of diffusers' AutoencoderKL or VQModel; a VQModel quantises the latents to its codebook first."""

    vae: Any

    @property
    @override
    def scale(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))  # every block but the last doubles the size

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        config, latents = self.vae.config, latents.to(self.vae.dtype)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # some SDXL autoencoders; per channel
            latents = latents * _per_channel(std, latents) / config.scaling_factor + _per_channel(mean, latents)
        else:
            latents = latents / config.scaling_factor  # which training put on them
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images


def _per_channel(numbers: Sequence[float], latents: Tensor) -> Tensor:
    """One number per channel, (1, c, 1, 1), like these latents."""
    return to_device(torch.tensor(numbers, dtype=latents.dtype), latents.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Pixels(Decoder):
    """Models that denoise pixels: the latent is the image."""

    scale: int = 1

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        return latents


@torch.inference_mode()
def to_images(decoder: Decoder, latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) to images (n, 3, H, W), float32 in [0, 1]; grey becomes three equal channels.

    The images are in the host's memory once a fence behind this call is passed.
    """
    images = to_host((decoder(latents).float() / 2 + 0.5).clamp(0, 1))
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
