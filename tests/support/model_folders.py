"""Folders of small models with random weights, one of each family, as diffusers saves them. Used by unit and integration tests.

Every builder takes the folder to write and gives it back. Import this module only where torch may be imported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    ModelMixin,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from places import ROOT
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

EMOJI = ROOT / "models" / "emoji64"
TOKENIZER = EMOJI / "tokenizer"
PLAIN: Mapping[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
LATENT_SCHEDULER: Mapping[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
WIDTH = 8  # of the text encoders


def sd(folder: Path, unet: Mapping[str, Any]) -> Path:
    """Stable Diffusion 1. Images are 16×16."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    StableDiffusionPipeline(
        vae=kl(),
        text_encoder=CLIPTextModel(clip_text(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**unet, "cross_attention_dim": WIDTH}),
        scheduler=PNDMScheduler(**scheduler, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def inpainting(folder: Path, unet: Mapping[str, Any]) -> Path:
    """Stable Diffusion 1 whose UNet sees a mask and the picture around it."""
    sd(folder, {**unet, "in_channels": 9})
    change(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    return folder


def sdxl(folder: Path, unet: Mapping[str, Any]) -> Path:
    """Stable Diffusion XL."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = clip_text(tokenizer)
    changes = {
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    StableDiffusionXLPipeline(
        vae=kl(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0], scaling_factor=0.13),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**{**unet, **changes}),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def lcm(folder: Path, unet: Mapping[str, Any], **scheduler: Any) -> Path:
    """A latent consistency model: Stable Diffusion 1 with the guidance scale as an input, and its own scheduler."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    LatentConsistencyModelPipeline(
        vae=kl(),
        text_encoder=CLIPTextModel(clip_text(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**unet, "cross_attention_dim": WIDTH, "time_cond_proj_dim": 6}),
        scheduler=LCMScheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def turbo(folder: Path, unet: Mapping[str, Any]) -> Path:
    """Stable Diffusion XL as SDXL Turbo's folder has it; it is one if the folder's name says so."""
    sdxl(folder, unet)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    EulerAncestralDiscreteScheduler(**betas, timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "EulerAncestralDiscreteScheduler"])
    return folder


def ddpm(folder: Path) -> Path:
    """An unconditional pixel model whose x₀ is clipped, as DDPM's scheduler does unless told otherwise."""
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**PLAIN), DDPMScheduler()).save_pretrained(folder)
    return folder


def ldm(folder: Path) -> Path:
    """Unconditional latent diffusion."""
    torch.manual_seed(0)
    LDMPipeline(_vq(), UNet2DModel(**PLAIN), DDIMScheduler(**LATENT_SCHEDULER)).save_pretrained(folder)
    return folder


def classes(folder: Path, unet: Mapping[str, Any]) -> Path:
    """As LDM-4-G on ImageNet: a table of six classes, the last of which means none, and a VQ autoencoder."""
    torch.manual_seed(0)
    UNet2DConditionModel(**{**unet, "in_channels": 3, "out_channels": 3}).save_pretrained(folder / "unet")
    _vq().save_pretrained(folder / "vqvae")
    DDIMScheduler(**LATENT_SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "class_embedder").mkdir()
    (folder / "class_embedder" / "config.json").write_text("{}")
    table = torch.randn(6, unet["cross_attention_dim"])
    save_file({"embedding.weight": table}, folder / "class_embedder" / "diffusion_pytorch_model.safetensors")
    index = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "VQModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "class_embedder": ["flexiffusion", "ClassEmbedder"],
        "id2label": {"0": "tench", "3": "cat"},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def labels(folder: Path) -> Path:
    """A pixel model whose UNet embeds class labels itself."""
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**PLAIN, num_class_embeds=5), DDPMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


DIT: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 6,
    "sample_size": 8,
    "num_embeds_ada_norm": 1000,  # of another number of classes diffusers' own pipeline does not know the null class
}


def dit(folder: Path, **scheduler: Any) -> Path:
    """DiT as its makers have it: a learned variance, a KL autoencoder, DDIM. Latents are (4, 8, 8)."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(**DIT, in_channels=4, out_channels=8)
    DiTPipeline(transformer, kl(), DDIMScheduler(clip_sample=False, **scheduler)).save_pretrained(folder)
    change(folder / "model_index.json", id2label={"0": "tench, Tinca tinca", "1": "goldfish"})
    return folder


def flow_dit(folder: Path, **scheduler: Any) -> Path:
    """A DiT of flow matching that draws five classes, with a VQ autoencoder, as `glyphs-dit` has it. Latents are (3, 8, 8)."""
    torch.manual_seed(0)
    changes = {**DIT, "num_embeds_ada_norm": 5, "in_channels": 3, "out_channels": 3}
    DiTTransformer2DModel(**changes).half().save_pretrained(folder / "transformer")
    _vq().half().save_pretrained(folder / "vqvae")
    FlowMatchEulerDiscreteScheduler(**scheduler).save_pretrained(folder / "scheduler")
    index = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vqvae": ["diffusers", "VQModel"],
        "id2label": {str(number): name for number, name in enumerate("ABCDE")},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


PIXART: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "num_layers": 4,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
}


def pixart(folder: Path, pipeline: type[Any] = PixArtAlphaPipeline, **transformer: Any) -> Path:
    """PixArt as its makers have it: T5, a learned variance, a KL autoencoder, DPM-Solver++. Images are 16×16."""
    torch.manual_seed(0)
    pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=kl(),
        transformer=PixArtTransformer2DModel(**{**PIXART, **transformer}),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(folder)
    return folder


T5_WORDS = ("▁a", "▁red", "▁blue", "▁cat", "▁and", "▁dog", "▁", "s", "e", "t", "r", "é", ",")


def t5_tokenizer() -> T5Tokenizer:
    """Of a few words and letters; all others are unknown."""
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*marks, *((word, -2.0 - i / 8) for i, word in enumerate(T5_WORDS))], extra_ids=0)


def t5_encoder(width: int = 16) -> T5EncoderModel:
    """Two layers, whose activations are gated as those of the T5 that these models have."""
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8}
    return T5EncoderModel(T5Config(**sizes, vocab_size=len(t5_tokenizer()) + 4, feed_forward_proj="gated-gelu")).eval()


def emoji(folder: Path, vae: ModelMixin | None = None) -> Path:
    """A copy of the bundled model, to spoil; with this autoencoder instead of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EMOJI / "model_index.json", folder)
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        shutil.copytree(EMOJI / part, folder / part)
    if vae is not None:
        shutil.rmtree(folder / "vae")
        vae.save_pretrained(folder / "vae")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", type(vae).__name__]}))
    return folder


def scaled(folder: Path, factor: float, prefix: str = "decoder.up_blocks.1.resnets.0.conv2") -> Path:
    """Make the decoder of `folder` overflow: multiply its weights of these names. It does not say `force_upcast` any more."""
    file, config = (folder / "vae" / name for name in ("diffusion_pytorch_model.safetensors", "config.json"))
    weights = {name: weight.float() * (factor if name.startswith(prefix) else 1) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    return folder


def clip_text(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=12,
        bos_token_id=1829,
        eos_token_id=1830,
    )


def kl(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **changes,
    )


def _vq() -> VQModel:
    return VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        vq_embed_dim=3,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )


def change(file: Path, drop: Sequence[str] = (), **values: Any) -> None:
    """Say other values in a JSON object, and leave some out."""
    said = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in said.items() if name not in drop}))
