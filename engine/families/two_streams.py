"""What transformers have in common whose text has a stream of its own: how a folder of one is read, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.families import transformer_family
from engine.folder import Folder
from registry.errors import Unsupported

if TYPE_CHECKING:
    from engine.condition import Condition

WIDTHS = ("joint_attention_dim", "pooled_projection_dim")  # of a text: each token, and all of it as one vector


def completed(config: Mapping[str, Any], class_name: str, numbers: Sequence[str]) -> dict[str, Any]:
    """A configuration with its class and diffusers' defaults; settings that the class does not have are left out.

    Raises `Unsupported` naming one of `numbers` that is no whole number of at least 1.
    """
    made = transformer_family.completed(config, class_name, (*numbers, *WIDTHS))
    if made["out_channels"] != made["in_channels"]:
        message = f"must be in_channels ({made['in_channels']}) in the transformer config, got {made['out_channels']}"
        raise Unsupported(message, param="out_channels")
    return made


def written(files: Folder, component: str, class_name: str) -> dict[str, Any]:
    """The network's configuration as it is written, when this version knows every component's class. Raises `Unsupported`."""
    from engine.components import known_config, refuse_two_classes

    config = known_config(files, component, (class_name,))
    refuse_two_classes(files, component, config)
    return config


def example(config: Mapping[str, Any], tokens: int, guidance: bool) -> Condition:
    """As `Family.condition`."""
    import torch

    from engine.condition import Condition

    token, whole = (int(config[field]) for field in WIDTHS)
    return Condition(torch.empty(1, tokens, token), torch.empty(1, whole), guidance=torch.empty(1, 1) if guidance else None)
