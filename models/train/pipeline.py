"""The shape of emoji64, and how it is written: a Stable Diffusion pipeline folder in fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerBase

EMOJI64 = Path("models/emoji64")
Unet = TypeVar("Unet", bound=torch.nn.Module)


def noise_levels() -> DDIMScheduler:
    """Cosine noise levels (Nichol & Dhariwal 2021), v-prediction; trailing spacing starts sampling at the noisiest."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def build_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a folder, or a new one of 7.1 M parameters with the proportions of Stable Diffusion's.

    Level 0 has no cross-attention: at 256 positions it would cost more time than its MACs say.
    """
    if (folder / "config.json").exists():
        return UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=4,
    )
    return calm(unet, "conv2", "proj_out")


def calm(unet: Unet, *ends: str) -> Unet:
    """Let each residual branch begin as nothing, and the first prediction be zero: calmer early training.

    ends: the layers that end a branch.
    """
    for name, parameter in unet.named_parameters():
        if name.rsplit(".", 1)[0].endswith(ends) or name.startswith("conv_out."):
            torch.nn.init.zeros_(parameter)
    return unet


def keep_float32(folder: Path) -> None:
    """Make transformers load the text encoder of a folder as fp32.

    From version 5 on it would load the fp16 that it finds in the file, and a CPU cannot run that beside fp32.
    """
    config = folder / "config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def export(
    folder: Path,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    vae: AutoencoderKL,
) -> None:
    """Save as fp16, half the bytes. The modules themselves become fp16: this is the last thing done with them."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=noise_levels(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    keep_float32(folder / "text_encoder")
