"""Where the tensors of a LoRA go: what a layer is called by those who train LoRAs.

Four ways to name a layer are known. kohya's: `lora_unet_down_blocks_0_…`, `lora_te_…` (with two text encoders `lora_te1_…` and
`lora_te2_…`), the dots of diffusers' or of the original names made underscores. diffusers': `unet.down_blocks.0.…`, in older
files with the name of an attention processor inside. peft's: `base_model.model.down_blocks.0.…`. And the layer's bare name.

Nothing is guessed from a name: each layer of the model has these names, and a LoRA's are looked up among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.importing.networks import Shapes
from engine.importing.original_names import original_name

KOHYA = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
PEFT = "base_model.model."
PROCESSORS = {  # how attention processors called layers, before diffusers used peft
    "unet": (("attn1.to_", "attn1.processor.to_"), ("attn2.to_", "attn2.processor.to_"), ("to_out.0", "to_out")),
    "text_encoder": (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")),
}


class Layer(NamedTuple):
    """A layer that a LoRA can change: of which component, and the name of its weight there."""

    component: str
    weight: str


def layers_by_name(wanted: Mapping[str, Shapes], unet: Mapping[str, Any]) -> dict[str, Layer]:
    """All names of the layers of these networks. unet: the UNet's complete configuration."""
    found: dict[str, Layer] = {}
    for component, shapes in wanted.items():
        if component not in KOHYA:
            continue
        for weight, shape in shapes.items():
            if weight.endswith(".weight") and len(shape) in (2, 4):
                layer = weight.removesuffix(".weight")
                found |= dict.fromkeys(_names(component, layer, unet), Layer(component, weight))
    return found


def _names(component: str, layer: str, unet: Mapping[str, Any]) -> Iterator[str]:
    """Of one layer. A text encoder's are known with and without the model that transformers once wrapped it in."""
    layers = [layer] if component == "unet" else [layer, f"text_model.{layer.removeprefix('text_model.')}"]
    for name in layers:
        old = name
        for new, before in PROCESSORS.get(component.removesuffix("_2"), ()):
            old = old.replace(new, before)
        for spelt in (name, old):
            yield f"{component}.{spelt}"
            if component != "text_encoder_2":  # whose layers have the same bare names as the first one's
                yield from (spelt, f"{PEFT}{spelt}")
        yield from (f"{prefix}_{name.replace('.', '_')}" for prefix in KOHYA[component])
    per_block = unet["layers_per_block"]
    if component == "unet" and isinstance(per_block, int):
        attends = frozenset(i for i, kind in enumerate(unet["up_block_types"]) if "Attn" in kind)
        yield f"lora_unet_{original_name(layer, per_block, attends).replace('.', '_')}"
