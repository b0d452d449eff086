"""Tiny transformers with random weights, one of each family, as diffusers' pipelines save them: all that a real folder has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from engine.architectures import autoencoder, clip_text

LENGTH = 32  # tokens of a prompt that T5 reads
T5_WIDTH, CLIP_WIDTHS = 64, (32, 64)
WORDS = 1000
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 32, "sample_size": 8}
_TEXTS = {"joint_attention_dim": sum(CLIP_WIDTHS)}


def _vae(channels: int, **changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**autoencoder(32, 32, 32, 32, sample_size=64, latent_channels=channels, **changes))


def _clip(tokenizer: Any, width: int, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = CLIPTextConfig(**clip_text(width, 2, 2, vocab_size=WORDS), **ids)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _t5(width: int) -> dict[str, Any]:
    """A T5 encoder, and a tokenizer that knows letters and no words."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*marks, *((chr(code), -2.0) for code in range(33, 127))], extra_ids=0)
    sizes = {"d_model": width, "d_kv": width // 4, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4}
    return {
        "text_encoder": T5EncoderModel(T5Config(**sizes, vocab_size=WORDS, feed_forward_proj="gated-gelu")),
        "tokenizer": tokenizer,
    }


def _numbered(parts: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {f"{name}_{number}": part for name, part in parts.items()}


def dit(tokenizer: Any) -> Any:
    """1000 classes, ε-prediction with a learned variance."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(**_HEADS, num_layers=6, in_channels=4, out_channels=8)
    return DiTPipeline(transformer, _vae(4), DDIMScheduler(clip_sample=False))


def pixart(tokenizer: Any) -> Any:
    """PixArt-α, which T5 alone reads texts for."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        **_HEADS, num_layers=6, in_channels=4, out_channels=8, cross_attention_dim=64, caption_channels=T5_WIDTH
    )
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    return PixArtAlphaPipeline(**_t5(T5_WIDTH), vae=_vae(4), transformer=transformer, scheduler=scheduler)


def sd3(tokenizer: Any) -> Any:
    """Stable Diffusion 3.5-medium's kind: the first blocks have an attention of the patches alone."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        **_HEADS, **_TEXTS, num_layers=6, in_channels=16, caption_projection_dim=64, pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=24, qk_norm="rms_norm", dual_attention_layers=(0, 1, 2),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(tokenizer, CLIP_WIDTHS[0], True),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, CLIP_WIDTHS[1], True),
        tokenizer_2=tokenizer,
        **_numbered(_t5(sum(CLIP_WIDTHS)), 3),
    )


def flux(tokenizer: Any) -> Any:
    """FLUX.1-dev's kind: it takes the guidance scale, and its levels follow the size."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12), joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTHS[0], num_layers=2, num_single_layers=4, in_channels=64, guidance_embeds=True,
    )  # fmt: skip
    transformer.register_to_config(sample_size=_HEADS["sample_size"])
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(tokenizer, CLIP_WIDTHS[0], False),
        tokenizer=tokenizer,
        **_numbered(_t5(T5_WIDTH), 2),
    )


FAMILIES: Mapping[str, Callable[[Any], Any]] = {
    "tiny-dit": dit,
    "tiny-pixart": pixart,
    "tiny-sd3": sd3,
    "tiny-flux": flux,
}


def pipeline(size: str, tokenizer: Any, dtype: torch.dtype) -> Any:
    """diffusers' own pipeline of one of `FAMILIES`, in this type. tokenizer: CLIP's, where it has one."""
    made = FAMILIES[size](tokenizer)
    for part in made.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)
    if size != "tiny-dit":
        made.register_to_config(max_sequence_length=LENGTH)
    return made
