"""Single files as model sites distribute them, made of a diffusers folder: the inverse of what an import does.

The names of a UNet's layers are the engine's own (which LoRAs need); that they are right is judged by diffusers' loader.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.importing.original_names import original_name

Tensors = dict[str, Tensor]
VAE = (  # in this order
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up\.(\d)\.resnets", r"up.\1.block"),
    (r"up\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
)
OPEN_CLIP = (
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"encoder\.layers", "transformer.resblocks"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"fc1", "c_fc"),
    (r"fc2", "c_proj"),
    (r"final_layer_norm", "ln_final"),
    (r"text_projection\.weight", "text_projection"),
)


def write_single_file(folder: Path, file: Path, open_clip: bool = False, ema: float | None = None) -> Path:
    """The model of `folder` in one file; the first text encoder in OpenCLIP's layout if asked for.

    ema: add averaged weights of the UNet too, which are the trained ones multiplied with this.
    """
    save_file(single_file(folder, open_clip, ema), file, metadata={"format": "pt"})
    return file


def single_file(folder: Path, open_clip: bool = False, ema: float | None = None) -> Tensors:
    parts = {file.parent.name: load_file(file) for file in folder.glob("*/*.safetensors")}
    unet = json.loads((folder / "unet" / "config.json").read_text())
    tensors = original(parts, unet, open_clip)
    if ema is not None:
        trained = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        tensors |= {f"model_ema.{name[6:].replace('.', '')}": tensor * ema for name, tensor in trained.items()}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def original(parts: Mapping[str, Tensors], unet: Mapping[str, Any], open_clip: bool) -> Tensors:
    """The tensors of a model's networks by their names in one file; on the meta device, too. unet: its configuration."""
    xl = "text_encoder_2" in parts
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(parts["unet"], unet).items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae(parts["vae"]).items()}
    if open_clip:
        tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in _open_clip(parts["text_encoder"]).items()}
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    else:
        prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
        tensors |= {f"{prefix}text_model.{name}": tensor for name, tensor in parts["text_encoder"].items()}
        tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if xl:
        second = _open_clip(parts["text_encoder_2"])
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    return tensors | {"alphas_cumprod": torch.ones(1000), "betas": torch.ones(1000)}


def write_header(file: Path, shapes: Mapping[str, Sequence[int]], **metadata: str) -> Path:
    """A safetensors file of tensors in half precision whose values the file system does not keep: all of them are zero."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    said = json.dumps(header).encode()
    file.write_bytes(len(said).to_bytes(8, "little") + said)
    os.truncate(file, 8 + len(said) + end)
    return file


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    attends = frozenset(i for i, kind in enumerate(config["up_block_types"]) if "Attn" in kind)
    made = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        made[f"{original_name(layer, config['layers_per_block'], attends)}.{part}"] = tensor
    return made


def vae(tensors: Tensors) -> Tensors:
    """An autoencoder's tensors by their original names."""
    blocks = 1 + max(int(found[1]) for name in tensors if (found := re.search(r"up_blocks\.(\d)", name)))
    made = {}
    for name, tensor in tensors.items():
        turned = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
        renamed = _renamed(turned, VAE)
        attention = ".attn_1." in renamed and renamed.endswith("weight") and tensor.ndim == 2
        made[renamed] = tensor[..., None, None] if attention else tensor  # a convolution there
    return made


def _open_clip(tensors: Tensors) -> Tensors:
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    made = {}
    for name, tensor in bare.items():
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            parts = [bare[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", name):
            made[_renamed(name, OPEN_CLIP)] = tensor.T if name.startswith("text_projection") else tensor
    return made


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for before, after in rules:
        name = re.sub(before, after, name)
    return name
