"""A loaded model with LoRAs (arXiv 2106.09685) added to it, beside the model itself: what they do not change, both share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from engine.components import fitting_unet
from engine.config import complete
from engine.families.table import family_of
from engine.folder import Folder
from engine.importing.lora import FittingLora, Lora, fit_lora, fused
from engine.importing.lora_names import Layer, layers_by_name
from engine.importing.networks import Shapes, expected, networks
from engine.model import Model
from engine.prompts import Prompts
from engine.text_prompts import TextPrompts, TwoTextPrompts
from registry.errors import Unsupported

N = TypeVar("N", bound=nn.Module)


class LoraReader:
    """Finds the layers of a folder's model that LoRA files change: from the configurations alone, without any weights."""

    def __init__(self, folder: str | Path) -> None:
        """Raises what is wrong with the folder."""
        files = Folder(folder)
        if files.network != "unet":
            raise Unsupported(f"LoRAs of a {files.network} are not supported, only a UNet's", param="lora")
        self.wanted: Mapping[str, Shapes] = {name: expected(files, name) for name in networks(files)}
        self._layers = layers_by_name(self.wanted, complete(fitting_unet(files)))

    def fit(self, path: Path) -> FittingLora:
        """A file, of which the header is read. Raises as `fit_lora`, with the param `lora`; pickles are refused."""
        return fit_lora(path, self._layers, self.wanted)

    def numbers(self, layers: Iterable[Layer]) -> int:
        """How many weights these layers have together: what a model with other ones takes beside the model itself."""
        return sum(prod(self.wanted[layer.component][layer.weight]) for layer in set(layers))


def read_loras(folder: str | Path, loras: Sequence[tuple[Path, float]]) -> list[Lora]:
    """LoRA files, each with its scale, for the model in a folder.

    Raises `NotFound`, and `Unsupported` with the param `lora` naming what fits nothing in this model, or is no plain LoRA.
    """
    reader = LoraReader(folder)
    return [reader.fit(path).read(scale) for path, scale in loras]


def adapted(model: Model, loras: Sequence[Lora]) -> Model:
    """The model with these LoRAs: W + Σ scale · (α / r) · B · A in every layer that one of them changes.

    The sum is made in float32 and rounded once, as `engine import` does, but to the type that the model runs in. Layers that
    none changes are the model's own tensors, not copies. It keeps the model's name and fingerprint, for the model's schedules
    run on it; what they are worth there nobody has measured. Not compiled. Raises `Unsupported` where a sum overflows in the
    weights' type.
    """
    return replace(
        model,
        network=family_of(model.network.config).unrolled(_changed(model.network.module, "unet", loras)),
        prompts=_adapted_prompts(model.prompts, loras),
    )


def _adapted_prompts(prompts: Prompts, loras: Sequence[Lora]) -> Prompts:
    if isinstance(prompts, TextPrompts):
        return replace(prompts, encoder=_changed(prompts.encoder, "text_encoder", loras))
    if isinstance(prompts, TwoTextPrompts):
        first = replace(prompts.first, encoder=_changed(prompts.first.encoder, "text_encoder", loras))
        second = replace(prompts.second, encoder=_changed(prompts.second.encoder, "text_encoder_2", loras))
        return replace(prompts, first=first, second=second)
    return prompts


@torch.inference_mode()
def _changed(network: N, component: str, loras: Sequence[Lora]) -> N:
    """The network with other weights where a LoRA changes them; itself where none does."""
    weights = {layer.weight for lora in loras for layer in lora.changes if layer.component == component}
    if not weights:
        return network
    kept = [*network.parameters(), *network.buffers()]
    copy = deepcopy(network, {id(tensor): tensor for tensor in kept})
    for name in weights:
        owner, _, field = name.rpartition(".")
        module = copy.get_submodule(owner)
        weight = getattr(module, field)
        total = fused(weight.detach(), Layer(component, name), loras)
        setattr(module, field, nn.Parameter(total, requires_grad=False))
    return copy
