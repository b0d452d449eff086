"""What transformers have in common that have a stream of patches alone, DiT and PixArt: how a configuration of one is read.

Both predict as many channels as a latent has, or twice as many with a learned variance behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.families import transformer_family
from engine.text_layouts import OLD_CLASS
from registry.errors import Unsupported

NUMBERS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "sample_size",
    "patch_size",
)


def completed(config: Mapping[str, Any], class_name: str, numbers: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration with its class and diffusers' defaults; settings that the class does not have are left out.

    numbers: those beside `NUMBERS`. Raises `Unsupported` naming one that is none, or that fits no other.
    """
    made = transformer_family.completed(config, class_name, (*NUMBERS, *numbers))
    channels, out = made["in_channels"], made["out_channels"]
    if out not in (channels, 2 * channels):
        message = f"must be in_channels ({channels}) in the transformer config, or twice as many with a learned variance"
        raise Unsupported(f"{message}, got {out}", param="out_channels")
    if made["sample_size"] % made["patch_size"]:
        message = f"must be a multiple of patch_size ({made['patch_size']}) in the transformer config"
        raise Unsupported(f"{message}, got {made['sample_size']}", param="sample_size")
    return made


def refuse_settings(config: Mapping[str, Any], settings: Mapping[str, tuple[object, ...]]) -> None:
    """Raises `Unsupported` naming a setting whose value does not run, or `norm_type` where that alone says what kind it is."""
    if config["_class_name"] == OLD_CLASS and "norm_type" not in config:
        raise Unsupported("is missing in the transformer config, and says what kind it is", param="norm_type")
    for field, values in settings.items():
        if field in config and config[field] not in values:
            raise Unsupported(f"{config[field]!r} in the transformer config is not supported", param=field)
