"""Folders of small Stable Diffusion 3 and FLUX models with random weights, as diffusers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from model_folders import TOKENIZER, change, clip_text, kl, t5_encoder, t5_tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SD3: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 2 * 12,
    "num_layers": 6,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "pos_embed_max_size": 12,
    "qk_norm": "rms_norm",
    "dual_attention_layers": (0, 1),
}
FLUX: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "axes_dims_rope": (4, 4, 4),
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "num_layers": 2,
    "num_single_layers": 4,
    "in_channels": 16,
}
DYNAMIC: Mapping[str, Any] = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
LENGTH = 6  # tokens that T5 reads


def sd3(folder: Path, **scheduler: Any) -> Path:
    """Of six blocks, the first two with an attention of the patches alone; images are 16×16."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    StableDiffusion3Pipeline(
        transformer=_large(SD3Transformer2DModel(**SD3)),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=_kl(),
        text_encoder=CLIPTextModelWithProjection(clip_text(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_text(tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=t5_encoder(24),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(folder)
    change(folder / "model_index.json", max_sequence_length=LENGTH)
    return folder


def flux(folder: Path, guided: bool = True, **scheduler: Any) -> Path:
    """Of two blocks of either stream and four of both; dev, or schnell where it is not guided. Images are 16×16."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    FluxPipeline(
        transformer=_large(FluxTransformer2DModel(**FLUX, guidance_embeds=guided)),
        scheduler=FlowMatchEulerDiscreteScheduler(**{**(DYNAMIC if guided else {}), **scheduler}),
        vae=_kl(),
        text_encoder=CLIPTextModel(clip_text(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(24),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
    change(folder / "model_index.json", max_sequence_length=LENGTH)
    change(folder / "transformer" / "config.json", sample_size=8)
    return folder


def _large(transformer: Any) -> Any:
    """With weights large enough for every block to matter, and for a prompt to change the picture."""
    for weight in transformer.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return transformer


def _kl() -> AutoencoderKL:
    return kl(scaling_factor=1.5, shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False)
