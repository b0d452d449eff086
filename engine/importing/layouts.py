"""From the names of the published implementations to those of diffusers and transformers, one network at a time.

The conversions are diffusers' own, of its single-file loader. They take tensors by name and give tensors by name, so that they
run on shapes alone (the meta device) before any weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from engine.config import reason
from engine.importing.kinds import UNET, VAE
from engine.importing.networks import Shapes
from registry.errors import Unsupported

CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")  # of the first text encoder, as transformers
OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
PARTS: Mapping[str, tuple[str, ...]] = {  # how the names of a network's tensors begin in a single file
    "unet": (UNET,),
    "vae": (VAE,),
    "text_encoder": (*CLIP, OPEN_CLIP["text_encoder"]),
    "text_encoder_2": (OPEN_CLIP["text_encoder_2"],),
}
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
MODEL = "text_model."  # around the layers of a text encoder, in some versions
AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

Tensors = dict[str, Tensor]


def converted(component: str, tensors: Tensors, config: Mapping[str, Any], source: Path, param: str = "source") -> Tensors:
    """A network's tensors of a single file, under their full names there, by the names that its library loads.

    config: the network's. Raises `Unsupported` where they are not named as those of a published implementation.
    """
    try:
        made = _CONVERSIONS[component](tensors, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        message = f"{source}: the tensors of its {component} are not named as a published model's ({reason(error)})"
        raise Unsupported(message, param=param) from error
    return {name: tensor.contiguous() for name, tensor in made.items() if tensor is not None}


def saved(tensors: Tensors) -> Tensors:
    """Tensors of a network that diffusers or transformers wrote, by the names that they have today."""
    for old, new in OLD_ATTENTION.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def spelt(tensors: Tensors, wanted: Shapes) -> Tensors:
    """By the names that are wanted, where only `text_model.` makes the difference: versions of transformers differ in it."""
    bare = {name.removeprefix(MODEL): name for name in wanted}
    return {bare.get(name.removeprefix(MODEL), name): tensor for name, tensor in tensors.items()}


def autoencoder(tensors: Tensors, config: Mapping[str, Any], source: Path) -> Tensors:
    """Of a file of its own, in either layout."""
    own = {_bare(name): tensor for name, tensor in tensors.items()}
    if any(".mid.block_1." in name for name in own):
        return converted("vae", own, config, source, "vae")
    return saved(own)


def is_autoencoders(name: str) -> bool:
    """Whether a tensor of such a file is one of its weights: a discriminator and averages may lie beside them."""
    return _bare(name).startswith(AUTOENCODER)


def _bare(name: str) -> str:
    return name.removeprefix(VAE).removeprefix("vae.")


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    made: Tensors = convert_ldm_unet_checkpoint(tensors, config)
    return made


def _vae(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    made: Tensors = convert_ldm_vae_checkpoint(tensors, config)
    return made


def _first_text(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    if any(name.startswith(OPEN_CLIP["text_encoder"]) for name in tensors):
        return _open_clip(tensors, config, OPEN_CLIP["text_encoder"])
    for prefix in CLIP:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _second_text(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return _open_clip(tensors, config, OPEN_CLIP["text_encoder_2"])


def _open_clip(tensors: Tensors, config: Mapping[str, Any], prefix: str) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    network = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))  # all that is asked of it
    made: Tensors = convert_open_clip_checkpoint(network, tensors, prefix)
    return made


_CONVERSIONS = {"unet": _unet, "vae": _vae, "text_encoder": _first_text, "text_encoder_2": _second_text}
