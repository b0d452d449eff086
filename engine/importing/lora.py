"""LoRAs: low-rank changes of a model's weights, W + scale · (α / r) · B · A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.importing.lora_names import Layer
from engine.importing.lora_settings import alpha_of, are_beside, number_of, of_component, settings_of
from engine.importing.networks import Shapes
from engine.importing.tensor_file import TensorFile, named, open_tensors
from registry.errors import InvalidInput, Unsupported

ROLES = {  # how a tensor's name ends, and which part of the change it is
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
}
OTHER_KINDS = {  # of changes that are no LoRA's: what is found in a tensor's name
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa (LyCORIS)",
    "lokr_w": "LoKr (LyCORIS)",
    "lora_mid": "a LoRA of convolutions in Tucker's form (LyCORIS)",
    r"\.oft_|boft_": "OFT",
    r"\.on_input": "IA3 (LyCORIS)",
    "lora_embedding": "a LoRA of an embedding",
    r"\.diff(_b)?$": "whole weights beside low-rank ones",
}
LEFT_OUT = {"bundle_emb.": "textual inversions that came with it"}  # they change prompts that say their name, and nothing else


@dataclass(frozen=True)
class Change:
    """Of one layer: down (r, in, …) and up (out, r, …), whose product is multiplied with `factor`, α / r."""

    down: Tensor
    up: Tensor
    factor: float


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a model. notes: what of its file is left out."""

    file: TensorFile
    scale: float
    changes: Mapping[Layer, Change]
    notes: tuple[str, ...] = ()

    def layers(self) -> dict[str, int]:
        """How many layers of each component it changes."""
        counts: dict[str, int] = defaultdict(int)
        for layer in self.changes:
            counts[layer.component] += 1
        return dict(counts)


def parse_lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE. Raises `InvalidInput` for a scale that is no finite number."""
    path, _, last = text.rpartition(":")
    if not path or "/" in last or Path(text).is_file():  # a colon in the name of a folder
        return Path(text), 1.0
    try:
        scale = float(last)
    except ValueError:
        raise InvalidInput(f"must be FILE or FILE:SCALE, as style.safetensors:0.8, got {text}", param="lora") from None
    if not math.isfinite(scale):
        raise InvalidInput(f"the scale must be a finite number, got {last}", param="lora")
    return Path(path), scale


@dataclass(frozen=True)
class FittingLora:
    """A file that fits a model, by its header: nothing else was read. parts: the names of each layer's tensors, by their role.

    notes: what of the file is left out.
    """

    file: TensorFile
    parts: Mapping[Layer, Mapping[str, str]]
    notes: tuple[str, ...]
    _stems: Mapping[Layer, str]

    @property
    def settings_beside(self) -> bool:
        """Whether peft's settings are in a file of their own beside it."""
        return are_beside(self.file)

    def read(self, scale: float) -> Lora:
        """Its numbers, at a scale. Raises `Unsupported` for those that are not finite, or cannot be read."""
        said = settings_of(self.file)
        changes = {layer: _change(self.file, names, layer, said, self._stems[layer]) for layer, names in self.parts.items()}
        return Lora(self.file, scale, changes, self.notes)


def read_lora(
    path: Path, scale: float, layers: Mapping[str, Layer], wanted: Mapping[str, Shapes], allow_pickle: bool = False
) -> Lora:
    """A LoRA for a model. Raises what `fit_lora` and `FittingLora.read` raise."""
    return fit_lora(path, layers, wanted, allow_pickle).read(scale)


def fit_lora(path: Path, layers: Mapping[str, Layer], wanted: Mapping[str, Shapes], allow_pickle: bool = False) -> FittingLora:
    """Every tensor of the file finds its layer, or it is refused. layers: by all of their names; wanted: shapes of the weights.

    Raises `NotFound`, and `Unsupported` naming the tensors that fit nothing, or the kind of change that is no LoRA's.
    """
    file = open_tensors(path, "lora", allow_pickle)
    for part, kind in OTHER_KINDS.items():
        if found := [name for name in file.shapes if re.search(part, name)]:
            raise Unsupported(f"{path} is {kind}, which this version cannot add: {named(found)}", param="lora")
    parts: dict[Layer, dict[str, str]] = defaultdict(dict)
    prefixes: dict[Layer, str] = {}
    lost: list[str] = []
    left_out: dict[str, int] = defaultdict(int)
    for name in file.shapes:
        if what := next((what for start, what in LEFT_OUT.items() if name.startswith(start)), None):
            left_out[what] += 1
            continue
        ending = max((end for end in ROLES if name.endswith(end)), key=len, default="")
        stem = name.removesuffix(ending)
        layer = layers.get(stem) if ending else None
        if layer is None or ROLES[ending] in parts[layer]:
            lost.append(name)
        else:
            parts[layer][ROLES[ending]], prefixes[layer] = name, stem
    if lost:
        raise Unsupported(f"{path}: nothing in this model is called {named(lost)}{_hint(file, wanted)}", param="lora")
    fitting = {layer: names for layer, names in parts.items() if names}
    if not fitting:
        raise Unsupported(f"{path} is no LoRA: none of its {len(file.shapes)} tensors is a change of a layer", param="lora")
    for layer, names in fitting.items():
        _refuse_misshapen(file, names, wanted, layer)
    notes = tuple(f"{path.name}: {count} tensors are left out: {what}" for what, count in left_out.items())
    return FittingLora(file, fitting, notes, prefixes)


def fused(weight: Tensor, layer: Layer, loras: Iterable[Lora]) -> Tensor:
    """The weight with the changes of all these LoRAs, added in float32 and rounded to its own type once.

    Raises `Unsupported` where that overflows.
    """
    found = [(lora, change) for lora in loras if (change := lora.changes.get(layer))]
    if not found:
        return weight
    total = weight.float()
    for lora, change in found:
        up, down = (half.to(weight.device, torch.float32).flatten(1) for half in (change.up, change.down))
        product = up @ down
        total = total + lora.scale * change.factor * product.view(weight.shape)
    rounded = total.to(weight.dtype)
    if not rounded.isfinite().all():
        files = " and ".join(str(lora.file.path) for lora, _ in found)
        kind = str(weight.dtype).removeprefix("torch.")
        raise Unsupported(f"{files}: {layer.weight} of {layer.component} overflows in {kind}", param="lora")
    return rounded


def _refuse_misshapen(file: TensorFile, names: Mapping[str, str], wanted: Mapping[str, Shapes], layer: Layer) -> None:
    """Raises `Unsupported` where a half is missing, or the product has not the shape of the layer's weight."""
    if absent := {"down", "up"} - names.keys():
        message = f"{file.path}: {next(iter(names.values()))} stands alone, its {absent.pop()} half is missing"
        raise Unsupported(message, param="lora")
    for name in names.values():
        file.dtype(name)
    down, up = file.shapes[names["down"]], file.shapes[names["up"]]
    shape, rank = wanted[layer.component][layer.weight], down[0] if down else 0
    product = (up[0], math.prod(down[1:])) if down and up and rank else ()
    if product != (shape[0], math.prod(shape[1:])) or math.prod(up[1:]) != rank:
        made, expected = f"{up} · {down}", f"a change of {shape}"
        message = f"{file.path}: {names['up']} · {names['down']} is {made}, expected {expected}{_hint(file, wanted)}"
        raise Unsupported(message, param="lora")


def _change(file: TensorFile, names: Mapping[str, str], layer: Layer, said: Mapping[str, Any], stem: str) -> Change:
    """Of a layer whose halves fit. Raises `Unsupported` for numbers that are not finite."""
    down, up = file.read(names["down"]), file.read(names["up"])
    if spoilt := [names[half] for half, part in (("down", down), ("up", up)) if not part.isfinite().all()]:
        raise Unsupported(f"{file.path}: {spoilt[0]} has numbers that are not finite", param="lora")
    rank, own = down.shape[0], names.get("alpha")
    alpha = number_of(file, own, file.read(own)) if own else alpha_of(file, said, layer, stem, rank)
    root = rank**0.5 if of_component(said, layer.component).get("use_rslora") and not own else rank
    return Change(down, up, alpha / root)


def _hint(file: TensorFile, wanted: Mapping[str, Shapes]) -> str:
    """Whether it was trained for a model whose context is as wide: the usual reason why a LoRA does not fit."""
    downs = tuple(ending for ending, role in ROLES.items() if role == "down")
    keys = [shape for name, shape in file.shapes.items() if "attn2" in name and "to_k" in name and name.endswith(downs)]
    own = next((shape[1] for name, shape in wanted["unet"].items() if name.endswith("attn2.to_k.weight")), None)
    if not keys or own is None or len(keys[0]) < 2 or keys[0][1] == own:
        return ""
    return f" (it was trained for a model whose context is {keys[0][1]} wide; here it is {own})"
