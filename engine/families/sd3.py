"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): text and patches in two streams that attend together.

All blocks give both streams, text first, but for the last one, whose text nobody reads: it gives None. In 3.5-medium the first
blocks have a second attention among the patches alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from engine.families import two_streams
from engine.families.transformer_family import TransformerFamily
from engine.folder import Folder
from registry.errors import Unsupported
from registry.schedule import Family as FamilyName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.condition import Condition
    from engine.families.transformer import Block, Parts, Streams
    from engine.items import MakeRegion

CLASS = "SD3Transformer2DModel"
NUMBERS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "num_layers",
    "sample_size",
    "patch_size",
    "caption_projection_dim",
    "pos_embed_max_size",
)


@dataclass(frozen=True)
class SD3Family(TransformerFamily):
    """Its texts are CLIP's twice and T5's; guidance takes two rows."""

    classes: tuple[str, ...] = (CLASS,)

    @override
    def name(self, config: Mapping[str, Any]) -> FamilyName:
        return "sd3-transformer2d"

    @override
    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        made = two_streams.completed(config, CLASS, NUMBERS)
        width, text = made["num_attention_heads"] * made["attention_head_dim"], made["caption_projection_dim"]
        if text != width:
            message = f"must be num_attention_heads times attention_head_dim ({width}) in the transformer config, got {text}"
            raise Unsupported(message, param="caption_projection_dim")
        sample, patch, limit = made["sample_size"], made["patch_size"], made["pos_embed_max_size"]
        if sample % patch or sample // patch > limit:
            message = f"must be a multiple of patch_size ({patch}) in the transformer config, and of at most {limit} patches"
            raise Unsupported(f"{message} (pos_embed_max_size), got {sample}", param="sample_size")
        return made

    @override
    def written(self, files: Folder) -> dict[str, Any]:
        return two_streams.written(files, self.component, CLASS)

    @override
    def parts(self, module: nn.Module, region: MakeRegion) -> Parts:
        return _parts(module, region)

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        return two_streams.example(config, tokens, guidance=False)


def _parts(sd3: Any, region: MakeRegion) -> Parts:
    """What the blocks look at is the embedding of time and pooled text (rows, width), and for the head the patches' grid."""
    from engine.families.transformer import Parts, unpatched

    patch = int(sd3.config["patch_size"])
    first = sd3.pos_embed.proj.weight

    def embed(sample: Tensor, timesteps: Tensor, pooled: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return sd3.pos_embed(sample).contiguous(), sd3.context_embedder(context), sd3.time_text_embed(timesteps, pooled)

    embedded = region(embed)

    def before(sample: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Streams, tuple[Tensor, int, int]]:
        assert condition.context is not None, "of all texts"
        assert condition.pooled is not None, "of all texts"
        pooled, context = condition.pooled.to(first.dtype), condition.context.to(first.dtype)
        image, text, embedding = embedded(sample, timesteps, pooled, context)
        return (image, text), (embedding, sample.shape[-2] // patch, sample.shape[-1] // patch)

    def head(hidden: Tensor, embedding: Tensor) -> Tensor:
        patches: Tensor = sd3.proj_out(sd3.norm_out(hidden, embedding))
        return patches

    last = region(head)

    def predicted(hidden: Tensor, given: tuple[Tensor, int, int]) -> Tensor:
        embedding, height, width = given
        return unpatched(last(hidden, embedding), height, width, patch)

    return Parts(before, [_block(module, region) for module in sd3.transformer_blocks], predicted, first, patch)


def _block(module: Any, region: MakeRegion) -> Block:
    """It gives (text, image), and is given them the other way round."""

    def run(image: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        text_after, image_after = module(hidden_states=image, encoder_hidden_states=text, temb=embedding)
        return (image_after,) if text_after is None else (image_after, text_after)

    made = region(run)
    return lambda streams, given: made(*streams, given[0])


SD3 = SD3Family()
