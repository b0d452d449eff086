"""The networks of a folder: which there are, and the names and shapes of their weights, from their configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import BUILD_ERRORS, complete, reason
from engine.folder import TOKENIZERS, Folder
from engine.importing.tensor_file import named
from engine.macs import meta_network
from registry.errors import Unsupported

Shapes = Mapping[str, tuple[int, ...]]


def networks(files: Folder) -> list[str]:
    """The components that are networks. A table of classes is none: it is copied."""
    others = ("scheduler", "class_embedder", *TOKENIZERS.values())
    return [name for name in files.components if name not in others]


def expected(files: Folder, component: str) -> Shapes:
    """Names and shapes of a network's weights, as its library loads them. Raises `Unsupported` for a wrong configuration."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in _network(files, component).state_dict().items()}


def refuse_misfit(found: Mapping[str, Tensor], wanted: Shapes, component: str, source: Path, param: str) -> list[str]:
    """Names of weights that nobody asks for and that do no harm: leftovers of a text encoder.

    param: the option that named `source`. Raises `Unsupported` naming what a network lacks, has besides, or keeps in another
    shape: loaders would draw it at random.
    """
    missing, others = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing:
        raise Unsupported(f"{source}: its {component} lacks {named(missing)}", param=param)
    if others and not component.startswith("text_encoder"):
        message = f"{source}: its {component} has besides what its configuration asks for: {named(others)}"
        raise Unsupported(message, param=param)
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            message = f"{source}: {name} of its {component} is {_times(found[name].shape)}, expected {_times(shape)}"
            raise Unsupported(message, param=param)
    return sorted(others)


def _network(files: Folder, component: str) -> nn.Module:
    if component == "unet":
        return meta_network(complete(files.config("unet")))
    import diffusers
    import transformers

    class_name = str(files.component(component))
    try:
        if component in TOKENIZERS:
            family: Any = getattr(transformers, class_name)
            network: nn.Module = family(family.config_class.from_pretrained(files.path(component)))
            return network
        network = getattr(diffusers, class_name).from_config(files.config(component))
    except BUILD_ERRORS as error:
        raise Unsupported(f"the configuration of {component} is wrong: {reason(error)}", param="config") from error
    return network


def _times(shape: tuple[int, ...] | torch.Size) -> str:
    return "×".join(map(str, shape)) or "a number"
