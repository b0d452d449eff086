"""The sizes of the published text-to-image models: what diffusers' and transformers' configurations of their parts say.

Facts of Stable Diffusion 1 (arXiv 2112.10752), 2 and XL (arXiv 2307.01952), as their makers' configurations state them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TOKENS = 77  # CLIP's
NOISE: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Architecture:
    """The parts of a text-to-image model.

    unet: a UNet2DConditionModel's configuration. vae: an AutoencoderKL's. texts: of the CLIP text encoders; with two of them it
    is Stable Diffusion XL. scheduler: of the noise levels. padding: of each text encoder, the word that fills a prompt up.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: Sequence[Mapping[str, Any]]
    scheduler: Mapping[str, Any] = field(default_factory=lambda: dict(NOISE))
    padding: Sequence[str] = ("<|endoftext|>", "!")


def clip_text(width: int, layers: int, heads: int, activation: str = "quick_gelu", **changes: Any) -> dict[str, Any]:
    """The configuration of a CLIP text encoder; of the published ones all have this vocabulary and number of tokens."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": activation,
        "vocab_size": 49408,
        "max_position_embeddings": TOKENS,
        **changes,
    }


def autoencoder(*channels: int, **changes: Any) -> dict[str, Any]:
    """An autoencoder with so many channels in its blocks; two resnets each."""
    blocks = {f"{way}_block_types": (f"{name}Block2D",) * len(channels) for way, name in _WAYS.items()}
    return {**blocks, "block_out_channels": channels, "layers_per_block": 2, "latent_channels": 4, **changes}


_WAYS = {"down": "DownEncoder", "up": "UpDecoder"}
XL_BLOCKS: Mapping[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}

SD1 = Architecture(  # of the UNet, diffusers' defaults are those of Stable Diffusion 1 but for the context's width
    unet={"sample_size": 64, "cross_attention_dim": 768},
    vae=autoencoder(128, 256, 512, 512, sample_size=512),
    texts=(clip_text(768, 12, 12),),
)
SD2 = Architecture(  # its text encoder is OpenCLIP's ViT-H without the last of 24 layers
    unet={
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    vae=autoencoder(128, 256, 512, 512, sample_size=768),
    texts=(clip_text(1024, 23, 16, "gelu", projection_dim=512),),
    padding=("!",),
)
SDXL = Architecture(
    unet={
        **XL_BLOCKS,
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    vae=autoencoder(128, 256, 512, 512, sample_size=1024, scaling_factor=0.13025),
    texts=(clip_text(768, 12, 12), clip_text(1280, 32, 20, "gelu")),
)
