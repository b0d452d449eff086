"""Pipeline folders with random weights: every size is a real model's, and the pictures mean nothing.

They stand in for a checkpoint where none can be downloaded: what a step, an image or a request takes does not depend on what
the weights say. A folder has all that a real one has, so a server, a search and load tests run on it as on any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.loading import DTYPES
from registry.errors import Conflict, InvalidInput

TOKENS = 77  # CLIP's
UNIT_SILU = 0.356  # the mean square of SiLU of a standard normal variable: what a UNet's last convolution sees, about


@dataclass(frozen=True)
class RandomModel:
    """The sizes of a text-to-image model: what diffusers' and transformers' configurations of its parts say.

    unet: a UNet2DConditionModel's. vae: an AutoencoderKL's. texts: of the CLIP text encoders; with two of them it is Stable
    Diffusion XL. scheduler: of the noise levels, the same for both.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: Sequence[Mapping[str, Any]]
    scheduler: Mapping[str, Any] = field(
        default_factory=lambda: {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    )


def _clip(width: int, layers: int, heads: int, activation: str = "quick_gelu", vocabulary: int = 49408) -> dict[str, Any]:
    """The configuration of a CLIP text encoder; of the published ones all have this vocabulary and number of tokens."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": activation,
        "vocab_size": vocabulary,
        "max_position_embeddings": TOKENS,
    }


def _vae(*channels: int, **changes: Any) -> dict[str, Any]:
    """An autoencoder with so many channels in its blocks; two resnets each."""
    blocks = {f"{way}_block_types": (f"{name}Block2D",) * len(channels) for way, name in _WAYS.items()}
    return {**blocks, "block_out_channels": channels, "layers_per_block": 2, "latent_channels": 4, **changes}


_WAYS = {"down": "DownEncoder", "up": "UpDecoder"}
_XL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_TINY_UNET = {"sample_size": 8, "layers_per_block": 1, "attention_head_dim": 2}

SIZES: Mapping[str, RandomModel] = {
    "sd15": RandomModel(  # of the UNet, diffusers' defaults are those of Stable Diffusion 1 but for the context's width
        unet={"sample_size": 64, "cross_attention_dim": 768},
        vae=_vae(128, 256, 512, 512, sample_size=512),
        texts=(_clip(768, 12, 12),),
    ),
    "sdxl": RandomModel(
        unet={
            **_XL_BLOCKS,
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        },
        vae=_vae(128, 256, 512, 512, sample_size=1024, scaling_factor=0.13025),
        texts=(_clip(768, 12, 12), _clip(1280, 32, 20, "gelu")),
    ),
    "tiny": RandomModel(
        unet={
            **_TINY_UNET,
            "cross_attention_dim": 32,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        vae=_vae(32, 32, 32, 32, sample_size=64),
        texts=(_clip(32, 2, 2, vocabulary=1000),),
    ),
    "tiny-sdxl": RandomModel(
        unet={
            **_TINY_UNET,
            **_XL_BLOCKS,
            "cross_attention_dim": 32 + 64,
            "block_out_channels": (32, 32, 64),
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 6 * 8,
        },
        vae=_vae(32, 32, 32, 32, sample_size=64, scaling_factor=0.13025),
        texts=(_clip(32, 2, 2, vocabulary=1000), _clip(64, 2, 2, "gelu", vocabulary=1000)),
    ),
}


def write(size: str, folder: Path, dtype: str = "float16") -> None:
    """Make a pipeline folder of one of `SIZES`, the same one at every call with the same torch: its seed is 0.

    Its `model_index.json` comes last, so that a folder which was not finished is none. Raises `InvalidInput` for a size or a
    dtype that is not known, `Conflict` where there is something in the folder already.
    """
    if size not in SIZES:
        raise InvalidInput(f"must be one of {', '.join(SIZES)}, got {size!r}", param="size")
    if dtype not in DTYPES:
        raise InvalidInput(f"must be one of {sorted(DTYPES)}, got {dtype!r}", param="dtype")
    if folder.is_dir() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty", param="out")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        _pipeline(SIZES[size], DTYPES[dtype]).save_pretrained(folder)


def _pipeline(model: RandomModel, dtype: torch.dtype) -> Any:
    """diffusers' own pipeline of these parts, which knows what belongs into a folder."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    def cast(module: nn.Module) -> nn.Module:
        return nn.Module.to(module, dtype)  # which diffusers' own warns against, for weights that have a meaning

    unet = UNet2DConditionModel(**model.unet)
    _of_unit_variance(unet.conv_out)
    parts: dict[str, Any] = {"unet": cast(unet), "vae": cast(AutoencoderKL(**model.vae))}
    for i, text in enumerate(model.texts):
        suffix = "_2" if i else ""
        tokenizer = parts[f"tokenizer{suffix}"] = _tokenizer()
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        family = CLIPTextModelWithProjection if i else CLIPTextModel
        encoder = family(CLIPTextConfig(**text, **ids, pad_token_id=tokenizer.pad_token_id))
        parts[f"text_encoder{suffix}"] = cast(encoder)
    if len(model.texts) > 1:
        scheduler = EulerDiscreteScheduler(**model.scheduler, timestep_spacing="leading")
        return StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    scheduler = PNDMScheduler(**model.scheduler, skip_prk_steps=True)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, scheduler=scheduler, **absent)


def _of_unit_variance(last: nn.Conv2d) -> None:
    """Let the UNet predict about as much noise as there is, so that latents and pixels stay where a real model's are."""
    taps = last.in_channels * last.kernel_size[0] * last.kernel_size[1]
    nn.init.normal_(last.weight, std=(UNIT_SILU * taps) ** -0.5)


def _tokenizer() -> Any:
    """A CLIP tokenizer that knows letters and no words: every byte, inside of a word and at its end, is a token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TOKENS)
