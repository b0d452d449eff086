"""A UNet's configuration: of which class it is, what it leaves out, what it says, and whether this version can run it.

diffusers is imported only where a constructor's own arguments are asked for, so that most wrong files are refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from registry.errors import Unsupported

CLASSES = ("UNet2DConditionModel", "UNet2DModel")
BLOCKS: dict[str, set[str]] = {
    "down_block_types": {"DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"},
    "mid_block_type": {"UNetMidBlock2D", "UNetMidBlock2DCrossAttn"},
    "up_block_types": {"UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"},
}
# Settings that change the forward pass, and the values of them that `UnrolledUNet` runs.
SETTINGS: dict[str, tuple[object, ...]] = {
    "addition_embed_type": (None, "text_time"),
    "attention_type": (None, "default"),
    "class_embed_type": (None,),
    "class_embeddings_concat": (None, False),
    "downsample_type": (None, "conv", "resnet"),
    "dual_cross_attention": (None, False),
    "encoder_hid_dim_type": (None,),
    "encoder_hid_dim": (None,),  # diffusers makes a type of it
    "time_embedding_type": ("positional",),
    "upsample_type": (None, "conv", "resnet"),
}
KINDS = {"one": "a whole number of at least 1", "many": "a list of such numbers", "null": "null"}
# Whole numbers, and what else diffusers takes in the same place.
NUMBERS: dict[str, tuple[Literal["one", "many", "null"], ...]] = {
    "in_channels": ("one",),
    "out_channels": ("one",),
    "conv_in_kernel": ("one",),
    "conv_out_kernel": ("one",),
    "block_out_channels": ("many",),
    "layers_per_block": ("one", "many"),
    "attention_head_dim": ("one", "many", "null"),
    "cross_attention_dim": ("one", "many", "null"),
    "norm_num_groups": ("one", "null"),
    "attn_norm_num_groups": ("one", "null"),
    "num_class_embeds": ("one", "null"),
    "time_cond_proj_dim": ("one", "null"),
    "time_embedding_dim": ("one", "null"),
    "addition_time_embed_dim": ("one", "null"),
    "projection_class_embeddings_input_dim": ("one", "null"),
}
LEAST_EMBEDDING = 4  # numbers that a guidance scale can be embedded in: two frequencies
# What diffusers and torch raise for values that a constructor did not check.
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """Everything that a UNet's configuration alone can be refused for. Raises `Unsupported` naming the block or setting."""
    class_of(config)
    for field, known in BLOCKS.items():
        for name in _block_types(config, field):
            if name.removeprefix("UNetRes") not in known:  # diffusers takes that prefix of old configurations away too
                raise Unsupported(f"{field} {name} is not supported; known: {sorted(known)}", param="unet")
    for field, values in SETTINGS.items():
        if field in config and config[field] not in values:
            raise Unsupported(f"{config[field]!r} in the unet config is not supported", param=field)
    for field, kinds in NUMBERS.items():
        if field in config and not _fits(config[field], kinds):
            wanted = " or ".join(KINDS[kind] for kind in kinds)
            raise Unsupported(f"must be {wanted} in the unet config, got {config[field]!r}", param=field)
    embedded = config.get("time_cond_proj_dim")
    if embedded is not None and embedded < LEAST_EMBEDDING:
        message = f"must be at least {LEAST_EMBEDDING} in the unet config, or null, got {embedded}"
        raise Unsupported(message, param="time_cond_proj_dim")
    if config.get("addition_embed_type") == "text_time":
        _refuse_added(config)


def class_of(config: Mapping[str, Any]) -> str:
    """The diffusers class; where the configuration does not say it, the one whose constructor takes more of its settings.

    Raises `Unsupported` for a class that this version does not know.
    """
    name = config.get("_class_name")
    if name is None:
        return _guess(config)
    if not isinstance(name, str) or name not in CLASSES:
        raise Unsupported(f"{name} is not supported; known: {sorted(CLASSES)}", param="unet")
    return name


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its class, and diffusers' defaults for what it leaves out."""
    name = class_of(config)
    return {**defaults(name), **config, "_class_name": name}


def defaults(class_name: str) -> dict[str, Any]:
    """The settings that a diffusers class's constructor takes, with the values it takes where none is given."""
    import diffusers

    parameters = signature(getattr(diffusers, class_name).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def attends(config: Mapping[str, Any]) -> bool:
    """Whether a UNet looks at a context."""
    config = complete(config)
    return config["_class_name"] == "UNet2DConditionModel" and _has_cross_attention(config)


def context_width(config: Mapping[str, Any]) -> int | None:
    """The context's width, None for a UNet that attends to none. Raises `Unsupported` where blocks want different ones."""
    if not attends(config):
        return None
    width = complete(config)["cross_attention_dim"]
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) != 1 or None in widths:
        message = f"must be one width for all blocks in the unet config, got {width!r}"
        raise Unsupported(message, param="cross_attention_dim")
    return int(widths.pop())


def sides(sample_size: Any) -> tuple[int, int]:
    """(height, width) of a UNet's `sample_size`. Raises `Unsupported`."""
    pair = (sample_size, sample_size) if is_whole(sample_size) else sample_size
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_whole, pair))):
        message = f"must be a whole number of at least 1, or two (height, width), got {sample_size!r}"
        raise Unsupported(message, param="sample_size")
    return int(pair[0]), int(pair[1])


def is_whole(value: object) -> bool:
    """A whole number of at least 1 (which true is not, though Python has it so)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """A finite number (which true is not, though Python has it so)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reason(error: BaseException) -> str:
    """What somebody else's error says, in one line that is not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _guess(config: Mapping[str, Any]) -> str:
    """The class whose constructor takes more of the settings; if both take as many, by whether blocks attend to a context."""
    settings = {name for name in config if not name.startswith("_")}
    conditional, plain = (len(settings - defaults(name).keys()) for name in CLASSES)
    if conditional != plain:
        return "UNet2DConditionModel" if conditional < plain else "UNet2DModel"
    return "UNet2DConditionModel" if _has_cross_attention(config) else "UNet2DModel"


def _has_cross_attention(config: Mapping[str, Any]) -> bool:
    return any("CrossAttn" in name for field in BLOCKS for name in _block_types(config, field))


def _block_types(config: Mapping[str, Any], field: str) -> list[str]:
    """The names in a field of `BLOCKS`. The middle is one block, or none."""
    value = config.get(field, [])
    if field == "mid_block_type":
        value = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise Unsupported(f"{field} must name blocks, got {value!r}", param="unet")
    return list(value)


def _fits(value: object, kinds: tuple[str, ...]) -> bool:
    if value is None:
        return "null" in kinds
    if isinstance(value, list | tuple):
        return "many" in kinds and bool(value) and all(map(is_whole, value))
    return "one" in kinds and is_whole(value)


def _refuse_added(config: Mapping[str, Any]) -> None:
    """Stable Diffusion XL's added conditioning: a pooled text beside the embeddings of six numbers."""
    for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if config.get(field) is None:
            raise Unsupported("is missing in the unet config, which addition_embed_type text_time needs", param=field)
    whole, sizes = config["projection_class_embeddings_input_dim"], 6 * config["addition_time_embed_dim"]
    if whole <= sizes:
        message = f"must be, in the unet config, more than 6 × addition_time_embed_dim = {sizes}, got {whole}"
        field = "projection_class_embeddings_input_dim"
        raise Unsupported(message, param=field)
