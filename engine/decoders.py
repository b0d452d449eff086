"""Latents to images: the last stage, once per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.device import to_device, to_host


class Decoder(Protocol):
    """`scale` is how many pixels a latent's element is wide."""

    @property
    def scale(self) -> int:
        """Pixels per latent element."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, channels, H, W), about −1 to 1."""


@dataclass(frozen=True)
class Autoencoder:
    """The decoder half of diffusers' AutoencoderKL or VQModel; a VQModel quantises the latents to its codebook first."""

    vae: Any

    @property
    def scale(self) -> int:
        """Every block but the last doubles the size."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def __call__(self, latents: Tensor) -> Tensor:
        """Undo the scaling that training put on the latents, and decode."""
        config, latents = self.vae.config, latents.to(self.vae.dtype)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # some SDXL autoencoders; per channel
            deviation, centre = (
                to_device(torch.tensor(each, dtype=latents.dtype), latents.device).view(1, -1, 1, 1) for each in (std, mean)
            )
            latents = latents * deviation / config.scaling_factor + centre
        else:
            latents = latents / config.scaling_factor
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images


@dataclass(frozen=True)
class Pixels:
    """Models that denoise pixels: the latent is the image."""

    scale: int = 1

    def __call__(self, latents: Tensor) -> Tensor:
        """Nothing to do."""
        return latents


@torch.inference_mode()
def pictures(decoder: Decoder, latents: Tensor) -> Tensor:
    """Images (n, 3, H, W), float32 in [0, 1] on the CPU, once a fence behind this call is passed; grey becomes three equal
    channels."""
    images = to_host((decoder(latents).float() / 2 + 0.5).clamp(0, 1))
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
