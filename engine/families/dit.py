"""DiT (arXiv 2212.09748): a transformer over the patches of a square latent, drawing classes.

Each block has an embedding of time and class of its own, and the head uses that of the first block, also where a partial step
runs no block at the front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from engine.families.family import ClassNames
from engine.families.one_stream import completed, refuse_settings
from engine.families.transformer_family import TransformerFamily
from engine.folder import Folder
from engine.text_layouts import OLD_CLASS
from registry.errors import Unsupported
from registry.schedule import Family as FamilyName

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.condition import Condition
    from engine.families.transformer import Parts, Streams
    from engine.items import MakeRegion
    from engine.prompts import Prompts

CLASS = "DiTTransformer2DModel"
# Settings that change the forward pass, and the values of them that run; the last three are of the old class.
SETTINGS: dict[str, tuple[object, ...]] = {
    "norm_type": ("ada_norm_zero",),
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "double_self_attention": (None, False),
}


@dataclass(frozen=True)
class DiTFamily(TransformerFamily):
    """Class-conditional. Its null class comes after the last one."""

    classes: tuple[str, ...] = (CLASS, OLD_CLASS)
    reads_texts: ClassVar[bool] = False

    @override
    def name(self, config: Mapping[str, Any]) -> FamilyName:
        return "dit-transformer2d"

    @override
    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        refuse_settings(config, SETTINGS)
        return completed(config, CLASS, ["num_embeds_ada_norm"])

    @override
    def written(self, files: Folder) -> dict[str, Any]:
        from engine.components import known_config

        config = known_config(files, self.component, self.classes)
        for name in ("text_encoder", "class_embedder"):
            if files.component(name):
                raise Unsupported(f"{name} beside a transformer that draws classes is not supported", param="model")
        refuse_settings(config, SETTINGS)
        return config

    @override
    def parts(self, module: nn.Module, region: MakeRegion) -> Parts:
        return _parts(module, region)

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        import torch

        from engine.condition import Condition

        return Condition(labels=torch.zeros(1, dtype=torch.long))

    @override
    def prompts(self, config: Mapping[str, Any], device: torch.device, names: ClassNames) -> Prompts | None:
        from engine.prompts import ClassPrompts

        classes = int(config["num_embeds_ada_norm"])
        known = names(classes)
        spelt = {word.strip(): number for text, number in known.items() for word in text.split(",")}  # as its pipeline has it
        return ClassPrompts(classes + 1, device, null=classes, names={**spelt, **known})


def _parts(dit: Any, region: MakeRegion) -> Parts:
    """What the blocks look at is (timesteps, class numbers), (rows,) each."""
    from torch.nn import functional as F

    from engine.families.transformer import Block, Parts, unpatched

    patch, side = dit.config["patch_size"], dit.config["sample_size"] // dit.config["patch_size"]

    def before(sample: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Streams, tuple[Tensor, Tensor | None]]:
        return (dit.pos_embed(sample),), (timesteps, condition.labels)

    def block(module: nn.Module) -> Block:
        run = region(lambda hidden, timesteps, labels: module(hidden, timestep=timesteps, class_labels=labels))
        return lambda streams, given: (run(streams[0], *given),)

    def head(hidden: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        embedding = dit.transformer_blocks[0].norm1.emb(timesteps, labels, hidden_dtype=hidden.dtype)
        shift, scale = dit.proj_out_1(F.silu(embedding))[:, None].chunk(2, dim=2)
        return unpatched(dit.proj_out_2(dit.norm_out(hidden) * (1 + scale) + shift), side, side, patch)

    last = region(head)
    blocks = [block(module) for module in dit.transformer_blocks]
    return Parts(before, blocks, lambda hidden, given: last(hidden, *given), dit.pos_embed.proj.weight, side * patch)


DIT = DiTFamily()
