"""Latents to images: the last stage, once per image; and images to latents, for those that start from one."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from engine.device import to_device, to_host
from engine.images import rounded

log = logging.getLogger(__name__)

# The type to go on in where one overflows. bfloat16 takes no more memory or time than float16 and has float32's range, but only
# three digits; so it comes before float32, and no decoder begins in it whose folder does not ask for a wider type than float16.
WIDER = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float32}


class Decoder(Protocol):
    """Makes images of latents."""

    @property
    def scale(self) -> int:
        """How many pixels an element of a latent is wide and high."""

    @property
    def overflowed(self) -> bool:
        """Whether it runs in a wider type than was asked for, because it overflowed in that."""

    def upcast(self) -> bool:
        """Run in the next wider type from now on, because it overflowed. Returns False where there is none."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, channels, H, W), about −1 to 1. What overflows is not finite."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) from −1 to 1, float32, to latents (n, c, h, w), float32. What overflows is not finite.

        Of an autoencoder that makes a distribution of an image it is the mode: an image has one latent, whatever the seed.
        """


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
        wider = WIDER.get(narrow)
        if wider is None:
            return False
        try:
            nn.Module.to(self.vae, wider)  # diffusers' own warns about nothing
        except Exception:  # memory for half of it is worse than for none
            nn.Module.to(self.vae, narrow)
            raise
        self.overflowed = True
        log.warning("the decoder overflows in %s: from now on it runs in %s", type_name(narrow), type_name(wider))
        return True

    @override
    def encode(self, images: Tensor) -> Tensor:
        config, images = self.vae.config, images.to(self.vae.dtype)
        encoded = self.vae.encode(images if config.in_channels == 3 else grey(images))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            latents = (latents - _per_channel(mean, latents)) / _per_channel(std, latents)
        return ((latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor).float()

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        config, latents = self.vae.config, latents.to(self.vae.dtype)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # some SDXL autoencoders; per channel
            latents = latents * _per_channel(std, latents) / config.scaling_factor + _per_channel(mean, latents)
        else:
            # Which training put on them. Of Stable Diffusion 3 and FLUX they are shifted too; diffusers fails without a number.
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images.masked_fill(~_whole(latents), math.nan)  # a codebook has a word for everything, and a tanh a limit


def type_name(dtype: torch.dtype) -> str:
    """As settings call it."""
    return str(dtype).removeprefix("torch.")


def _per_channel(numbers: Sequence[float], latents: Tensor) -> Tensor:
    """One number per channel, (1, c, 1, 1), like these latents."""
    return to_device(torch.tensor(numbers, dtype=latents.dtype), latents.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Pixels(Decoder):
    """Models that denoise pixels: the latent is the image."""

    channels: int = 3
    scale: int = 1
    overflowed: bool = False

    @override
    def upcast(self) -> bool:
        return False

    @override
    def encode(self, images: Tensor) -> Tensor:
        return images if self.channels == 3 else grey(images)

    @override
    def __call__(self, latents: Tensor) -> Tensor:
        return latents


def grey(images: Tensor) -> Tensor:
    """Images (n, 3, H, W) without their colours, (n, 1, H, W) (ITU-R BT.601, as Pillow has it)."""
    weights = torch.tensor((0.299, 0.587, 0.114), dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


class Decoded(NamedTuple):
    """Images on their way to the host's memory; they are there once a fence behind their decoding is passed.

    images: (n, 3, H, W), float32 in [0, 1], or what files hold: levels (n, H, W, 3), uint8. finite (n,), bool: which of them
    are pictures; the others hold nothing.
    """

    images: Tensor
    finite: Tensor


@torch.inference_mode()
def to_images(decoder: Decoder, latents: Tensor) -> Decoded:
    """Latents (n, c, h, w) to images in float32; grey becomes three equal channels."""
    images, finite = _decoded(decoder, latents)
    return Decoded(to_host(images).expand(-1, 3, -1, -1), to_host(finite))


@torch.inference_mode()
def to_levels(decoder: Decoder, latents: Tensor) -> Decoded:
    """The same as levels, which the device rounds: a quarter of the bytes, and none of the host's time."""
    images, finite = _decoded(decoder, latents)
    return Decoded(to_host(rounded(images.expand(-1, 3, -1, -1))), to_host(finite))


def _decoded(decoder: Decoder, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, channels, H, W) in [0, 1], and which of them are finite, (n,). Clamped, an infinity would look like white."""
    decoded = decoder(latents).float()
    finite = _whole(decoded)
    return (decoded / 2 + 0.5).clamp(0, 1).masked_fill(~finite, 0), finite.flatten()


def _whole(tensor: Tensor) -> Tensor:
    """Which parts (c, h, w) of (n, c, h, w) are finite throughout: (n, 1, 1, 1), bool. Asks the device, and does not wait."""
    return tensor.isfinite().flatten(1).all(dim=1).view(-1, 1, 1, 1)
