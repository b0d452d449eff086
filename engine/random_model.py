"""Pipeline folders with random weights: every size is a real model's, and the pictures mean nothing.

They stand in for a checkpoint where none can be downloaded: what a step, an image or a request takes does not depend on what
the weights say. A folder has all that a real one has, so a server, a search and load tests run on it as on any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import random_transformers
from engine.architectures import SD1, SDXL, TOKENS, XL_BLOCKS, Architecture, autoencoder, clip_text
from engine.loading import DTYPES
from registry.errors import Conflict, InvalidInput

UNIT_SILU = 0.356  # the mean square of SiLU of a standard normal variable: what a UNet's last convolution sees, about


_TINY_UNET = {"sample_size": 8, "layers_per_block": 1, "attention_head_dim": 2}

SIZES: Mapping[str, Architecture] = {
    "sd15": SD1,
    "sdxl": SDXL,
    "tiny": Architecture(
        unet={
            **_TINY_UNET,
            "cross_attention_dim": 32,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        vae=autoencoder(32, 32, 32, 32, sample_size=64),
        texts=(clip_text(32, 2, 2, vocab_size=1000),),
    ),
    "tiny-sdxl": Architecture(
        unet={
            **_TINY_UNET,
            **XL_BLOCKS,
            "cross_attention_dim": 32 + 64,
            "block_out_channels": (32, 32, 64),
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 6 * 8,
        },
        vae=autoencoder(32, 32, 32, 32, sample_size=64, scaling_factor=0.13025),
        texts=(clip_text(32, 2, 2, vocab_size=1000), clip_text(64, 2, 2, "gelu", vocab_size=1000)),
    ),
}


def write(size: str, folder: Path, dtype: str = "float16") -> None:
    """Make a pipeline folder of one of `SIZES` or `random_transformers.FAMILIES`, the same one at every call with the same
    torch: its seed is 0.

    Its `model_index.json` comes last, so that a folder which was not finished is none. Raises `InvalidInput` for a size or a
    dtype that is not known, `Conflict` where there is something in the folder already.
    """
    known = (*SIZES, *random_transformers.FAMILIES)
    if size not in known:
        raise InvalidInput(f"must be one of {', '.join(known)}, got {size!r}", param="size")
    if dtype not in DTYPES:
        raise InvalidInput(f"must be one of {sorted(DTYPES)}, got {dtype!r}", param="dtype")
    if folder.is_dir() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty", param="out")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        numbers = DTYPES[dtype]
        transformer = size in random_transformers.FAMILIES
        made = random_transformers.pipeline(size, _tokenizer(), numbers) if transformer else _pipeline(SIZES[size], numbers)
        made.save_pretrained(folder)


def _pipeline(model: Architecture, dtype: torch.dtype) -> Any:
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
