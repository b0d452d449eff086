"""What the trainer of a LoRA said of it, where its tensors do not say it: α above all."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from engine.config import reason
from engine.importing.lora_names import PEFT, Layer
from engine.importing.tensor_file import TensorFile
from engine.stored_file import read_object
from registry.errors import Unsupported

METADATA, PEFT_CONFIG = "lora_adapter_metadata", "adapter_config.json"  # diffusers' in the header; peft's beside the file


def are_beside(file: TensorFile) -> bool:
    """Whether peft's settings are in a file of their own beside it: α is nowhere else."""
    return METADATA not in file.metadata and any(name.startswith(PEFT) for name in file.shapes)


def alpha_of(file: TensorFile, said: Mapping[str, Any], layer: Layer, stem: str, rank: int) -> float:
    """α of a layer, where no tensor says it: the rank, unless the trainer's settings say another. Raises `Unsupported`."""
    own = of_component(said, layer.component)
    inside = stem.removeprefix(PEFT).removeprefix(f"{layer.component}.")  # what the layer is called in its network
    try:
        for pattern, alpha in (own.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", inside):  # as peft matches it
                return number_of(file, "alpha_pattern", alpha)
    except (AttributeError, re.error) as error:
        message = f"{file.path}: alpha_pattern must say α by regular expressions: {reason(error)}"
        raise Unsupported(message, param="lora") from error
    return number_of(file, "lora_alpha", own.get("lora_alpha") or rank)


def number_of(file: TensorFile, name: str, value: Any) -> float:
    """What a file, or the settings of whoever trained it, say α is. Raises `Unsupported`."""
    try:
        number = float(value)
    except (RuntimeError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Unsupported(f"{file.path}: {name} must be one finite number", param="lora")
    return number


def settings_of(file: TensorFile) -> Mapping[str, Any]:
    """peft's settings: by component, or for all. diffusers writes them into the header, peft into a file beside it."""
    if METADATA in file.metadata:
        try:
            flat = json.loads(file.metadata[METADATA])
            nested: dict[str, dict[str, Any]] = defaultdict(dict)
            for key, value in flat.items():
                component, _, setting = str(key).rpartition(".")  # none of a network that was saved alone
                nested[component][setting] = value
        except (AttributeError, ValueError, RecursionError) as error:
            raise Unsupported(f"{file.path}: {METADATA} in its header is no JSON object: {error}", param="lora") from error
        return nested
    return {"": read_object(file.path.with_name(PEFT_CONFIG), "lora")} if are_beside(file) else {}


def of_component(said: Mapping[str, Any], component: str) -> Mapping[str, Any]:
    """Of one component, or what is said of all."""
    found: Mapping[str, Any] = said.get(component) or said.get("") or {}
    return found
