"""All of a folder but its weights: configurations, scheduler, tokenizers; the project's own, or those of another folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from engine.architectures import Architecture
from engine.folder import CONFIGS, INDEX, TOKENIZERS, Folder
from engine.importing.tokenizer import clip_tokenizer

SCALE = 8  # pixels for an element of a latent, of all published autoencoders


def write_configs(folder: Path, architecture: Architecture, prediction: str, zero_snr: bool, size: int | None) -> None:
    """Of a published architecture, as diffusers and transformers save them.

    size: of the images that the model was trained on, in pixels [default: the architecture's].
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    xl = len(architecture.texts) > 1
    sample_size = size // SCALE if size else architecture.unet["sample_size"]
    with torch.device("meta"):
        UNet2DConditionModel(**{**architecture.unet, "sample_size": sample_size}).save_config(folder / "unet")
        AutoencoderKL(**architecture.vae).save_config(folder / "vae")
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for i, (text, padding) in enumerate(zip(architecture.texts, architecture.padding, strict=False)):
        encoder, tokenizer = list(TOKENIZERS.items())[i]
        made = clip_tokenizer(padding)
        made.save_pretrained(folder / tokenizer)
        class_name = "CLIPTextModelWithProjection" if i else "CLIPTextModel"
        ids = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
        CLIPTextConfig(**text, **ids, architectures=[class_name]).save_pretrained(folder / encoder)
        parts |= {encoder: ["transformers", class_name], tokenizer: ["transformers", "CLIPTokenizer"]}
    parts["scheduler"] = ["diffusers", _write_scheduler(folder, architecture, prediction, zero_snr)]
    pipeline = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    write_index(folder, {"_class_name": pipeline, **parts, **({} if xl else {"requires_safety_checker": False})})


def copy_configs(files: Folder, folder: Path) -> None:
    """Of what is read of another folder. Components that nobody here runs, a safety checker among them, stay behind."""
    absent = {name: [None, None] for name in files.index if files.component(name) and name not in files.components}
    for name in files.components:
        inner = folder / name
        inner.mkdir()
        if name in TOKENIZERS.values() or name == "class_embedder":
            for kept, file in files.files(name).items():
                shutil.copyfile(file, inner / kept)
        else:
            config = CONFIGS.get(name, "config.json")
            shutil.copyfile(files.path(name) / config, inner / config)
    write_index(folder, {**files.index, **absent})


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """A pipeline's model_index.json."""
    import diffusers

    said = {"_diffusers_version": diffusers.__version__, **index}
    (folder / INDEX).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_scheduler(folder: Path, architecture: Architecture, prediction: str, zero_snr: bool) -> str:
    """The class with which models of this kind were published, and which can walk their noise levels."""
    import diffusers

    own: dict[str, Any]
    settings = {**architecture.scheduler, "prediction_type": prediction}
    if len(architecture.texts) > 1:
        name, own = "EulerDiscreteScheduler", {"timestep_spacing": "leading"}
    elif prediction == "v_prediction" or zero_snr:
        name, own = "DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}
    else:
        name, own = "PNDMScheduler", {"set_alpha_to_one": False, "skip_prk_steps": True}
    if zero_snr:
        own |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    getattr(diffusers, name)(**settings, **own).save_pretrained(folder / "scheduler")
    return name
