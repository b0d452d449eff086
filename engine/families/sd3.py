"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): text and patches in two streams that attend together.

All blocks give both streams, text first, but for the last one, whose text nobody reads: it gives None. In 3.5-medium the first
blocks have a second attention among the patches alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from engine.families import two_streams
from engine.families.family import ClassNames, Family
from engine.folder import Folder
from registry.errors import Unsupported
from registry.schedule import Family as FamilyName

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.condition import Condition
    from engine.denoiser import Denoiser
    from engine.families.transformer import Block, Parts, Streams
    from engine.items import MakeRegion
    from engine.macs import Macs
    from engine.prompts import Prompts
    from registry.schedule import Branch

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
class SD3Family(Family):
    """Its texts are CLIP's twice and T5's; guidance takes two rows."""

    component: str = "transformer"
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
    def refuse(self, files: Folder) -> None:
        two_streams.written(files, self.component, CLASS)

    @override
    def fitting(self, files: Folder) -> dict[str, Any]:
        from engine.components import refuse_latents, refuse_texts

        config = self.known(two_streams.written(files, self.component, CLASS))
        refuse_latents(files, self.component, config["in_channels"])
        refuse_texts(files, config)
        return config

    @override
    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_channels"])

    @override
    def usual_guidance(self, config: Mapping[str, Any]) -> float | None:
        return None

    @override
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import SD3Transformer2DModel

        module: nn.Module = SD3Transformer2DModel.from_config(dict(config))
        return module

    @override
    def unrolled(self, module: nn.Module, region: MakeRegion | None = None) -> Denoiser:
        from engine.families.transformer import UnrolledTransformer
        from engine.items import as_it_is

        return UnrolledTransformer(module, _parts(module, region or as_it_is))

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        return two_streams.example(config, tokens, guidance=False)

    @override
    def prompts(self, config: Mapping[str, Any], device: torch.device, names: ClassNames) -> Prompts | None:
        return None

    @override
    def count(
        self, network: Denoiser, latent_shape: tuple[int, int, int], condition: Condition
    ) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
        from engine.families.transformer import UnrolledTransformer, count

        return count(cast(UnrolledTransformer, network), latent_shape, condition)


def _parts(sd3: Any, region: MakeRegion) -> Parts:
    """What the blocks look at is the embedding of time and pooled text (rows, width), and for the head the patches' grid."""
    import torch

    from engine.families.transformer import Parts

    patch, channels = int(sd3.config["patch_size"]), int(sd3.out_channels)
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

    def unpatched(hidden: Tensor, given: tuple[Tensor, int, int]) -> Tensor:
        embedding, height, width = given
        patches = last(hidden, embedding).view(-1, height, width, patch, patch, channels)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(-1, channels, height * patch, width * patch)

    return Parts(before, [_block(module, region) for module in sd3.transformer_blocks], unpatched, first, patch)


def _block(module: Any, region: MakeRegion) -> Block:
    """It gives (text, image), and is given them the other way round."""

    def run(image: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        text_after, image_after = module(hidden_states=image, encoder_hidden_states=text, temb=embedding)
        return (image_after,) if text_after is None else (image_after, text_after)

    made = region(run)
    return lambda streams, given: made(*streams, given[0])


SD3 = SD3Family()
