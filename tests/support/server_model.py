"""A model of some milliseconds: the tiny UNet, with a text encoder and a VAE that only look like ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.condition import Condition
from engine.decoders import Pixels
from engine.model import Model
from engine.prompt_chunks import Reading
from engine.prompt_syntax import PLAIN, parts
from engine.prompts import Prompts
from engine.schedulers import noise_levels
from engine.unrolled import UnrolledUNet
from registry.schedule import ModelRef


@dataclass(frozen=True)
class FakeText(Prompts):
    """Embeds a prompt by its bytes, every chunk otherwise; refuses the prompt "poison"; reads of a text ten words a chunk."""

    sample: str = ""
    tokens: int = 3
    guides: bool = True
    reads_texts: bool = True
    takes_chunks: bool = True

    def encode(self, prompts, chunks=1, syntax=PLAIN) -> Condition:
        if "poison" in prompts:
            raise ValueError("poisoned prompt")
        seeds = [torch.Generator().manual_seed(sum(prompt.encode()) + len(prompt) + len(syntax) - 5) for prompt in prompts]
        return Condition(torch.stack([torch.randn(3 * chunks, 6, generator=seed) for seed in seeds]))

    negative = encode

    def reading(self, prompt: str, most: int = 1, syntax=PLAIN) -> Reading:
        words = [part for written in parts(prompt, syntax) for part in written.text.split(" ")]
        return Reading(min(most, max(1, -(-len(words) // 10))), " ".join(words[10 * most :]))


@dataclass(frozen=True)
class ThreeChannels(Pixels):
    """Its images are three channels of the latent."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.mean(dim=1, keepdim=True)], dim=1)

    def __call__(self, latents: Tensor) -> Tensor:
        return 2 * latents[:, :3].sigmoid() - 1


def small_model(unet) -> Model:
    """A model around the `tiny` fixture's UNet; its latents are (4, 8, 8), its images (3, 8, 8)."""
    return Model(
        ref=ModelRef(name="tiny", family="unet2d-condition", fingerprint=f"sha256:{'0' * 64}"),
        network=UnrolledUNet(unet),
        levels=noise_levels({"timestep_spacing": "trailing", "clip_sample": False}),
        prompts=FakeText(),
        decoder=ThreeChannels(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        latent_shape=(4, 8, 8),
        usual_guidance=3.0,
    )
