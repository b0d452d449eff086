"""FLUX.1: blocks of two streams, then blocks in which text and patches are one sequence, all of which give both back.

Its latents lie packed in the model, four pixels to a token; outside of it they are (c, h, w), as Euler's steps commute with
packing. Where a patch lies is told by rotary tables of (rows, columns), which have no rows: all images of a call are of one
size. Of the two published models one, dev, takes the guidance scale as an input.

Time and scale are embedded from float32 numbers, whatever the weights' type. diffusers' pipeline rounds them to it before: in
bfloat16 962.5 becomes 964, and a scale of 3.5 becomes 3504 thousandths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from engine.families import two_streams
from engine.families.transformer_family import TransformerFamily, refuse_number
from engine.folder import Folder
from engine.guidance import USUAL_FLUX
from registry.errors import Unsupported
from registry.schedule import Family as FamilyName

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.condition import Condition
    from engine.families.transformer import Block, Parts, Streams
    from engine.items import MakeRegion

CLASS = "FluxTransformer2DModel"
PACKED = 2  # pixels of a latent that are side by side in a token
SAMPLE_SIZE = 128  # of diffusers' pipeline; the folders say none
NUMBERS = ("num_attention_heads", "attention_head_dim", "in_channels")


@dataclass(frozen=True)
class FluxFamily(TransformerFamily):
    """Its texts are T5's, and CLIP's as one vector; each image takes one row, guided or not."""

    classes: tuple[str, ...] = (CLASS,)

    @override
    def name(self, config: Mapping[str, Any]) -> FamilyName:
        return "flux-transformer2d"

    @override
    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        made = two_streams.completed(config, CLASS, NUMBERS)
        made["sample_size"] = config.get("sample_size", SAMPLE_SIZE)
        refuse_number("sample_size", made["sample_size"])
        if made["sample_size"] % PACKED:
            message = f"must be a multiple of {PACKED} in the transformer config, got {made['sample_size']}"
            raise Unsupported(message, param="sample_size")
        if made["patch_size"] != 1:
            message = f"must be 1 in the transformer config, as patches are packed outside of it, got {made['patch_size']!r}"
            raise Unsupported(message, param="patch_size")
        if made["in_channels"] % PACKED**2:
            message = f"must be {PACKED**2} times the channels of a latent in the transformer config"
            raise Unsupported(f"{message}, got {made['in_channels']}", param="in_channels")
        layers = [made[field] for field in ("num_layers", "num_single_layers")]
        if not all(type(count) is int and count >= 0 for count in layers) or not sum(layers):
            message = "and num_single_layers must be whole numbers in the transformer config, one of them at least 1"
            raise Unsupported(f"{message}, got {layers[0]!r} and {layers[1]!r}", param="num_layers")
        _refuse_axes(made)
        return made

    @override
    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_channels"]) // PACKED**2

    @override
    def usual_guidance(self, config: Mapping[str, Any]) -> float | None:
        return USUAL_FLUX if config["guidance_embeds"] else None

    @override
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        own = {name: value for name, value in config.items() if name != "sample_size"}
        module: nn.Module = FluxTransformer2DModel.from_config(own)
        return module

    @override
    def written(self, files: Folder) -> dict[str, Any]:
        return two_streams.written(files, self.component, CLASS)

    @override
    def parts(self, module: nn.Module, region: MakeRegion) -> Parts:
        return _parts(module, region)

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        return two_streams.example(config, tokens, guidance=bool(config["guidance_embeds"]))


def _refuse_axes(config: Mapping[str, Any]) -> None:
    """Raises `Unsupported` for rotary tables that are not as wide as a head."""
    axes, width = config["axes_dims_rope"], config["attention_head_dim"]
    whole = isinstance(axes, list | tuple) and all(type(axis) is int and axis > 0 and axis % 2 == 0 for axis in axes)
    if not whole or len(axes) != 3 or sum(axes) != width:
        message = f"must be three even numbers in the transformer config whose sum is attention_head_dim ({width})"
        raise Unsupported(f"{message}, got {axes!r}", param="axes_dims_rope")


def _parts(flux: Any, region: MakeRegion) -> Parts:
    """What the blocks look at is the embedding (rows, width) of time, guidance and pooled text, and the rotary tables
    (1, tokens, head width); the head looks at the embedding and the packed latent's grid.
    """
    from engine.families.transformer import Parts

    first = flux.x_embedder.weight

    def embed(
        packed: Tensor, timesteps: Tensor, guidance: Tensor | None, pooled: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        times = (timesteps,) if guidance is None else (timesteps, 1000 * guidance)
        return flux.x_embedder(packed), flux.context_embedder(context), flux.time_text_embed(*times, pooled)

    embedded = region(embed)

    def before(sample: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Streams, tuple[Any, ...]]:
        assert condition.context is not None, "of all texts"
        assert condition.pooled is not None, "of all texts"
        height, width = (side // PACKED for side in sample.shape[-2:])
        guidance = condition.guidance
        scale = None if guidance is None else guidance[:, 0].to(first.dtype).float()  # as slots keep it
        pooled, context = condition.pooled.to(first.dtype), condition.context.to(first.dtype)
        image, text, embedding = embedded(packed(sample), timesteps.float(), scale, pooled, context)
        tables = (table[None] for table in flux.pos_embed(places(text.shape[1], height, width, text.device)))
        return (image, text), (embedding, *tables, height, width)

    def head(hidden: Tensor, embedding: Tensor) -> Tensor:
        patches: Tensor = flux.proj_out(flux.norm_out(hidden, embedding))
        return patches

    last = region(head)

    def predicted(hidden: Tensor, given: tuple[Any, ...]) -> Tensor:
        embedding, _, _, height, width = given
        return unpacked(last(hidden, embedding), height, width)

    blocks = [_block(module, region) for module in (*flux.transformer_blocks, *flux.single_transformer_blocks)]
    return Parts(before, blocks, predicted, first, PACKED)


def _block(module: Any, region: MakeRegion) -> Block:
    """Of either kind: it gives (text, image), and is given them the other way round."""

    def run(image: Tensor, text: Tensor, embedding: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        tables = (cos[0], sin[0])
        text, image = module(hidden_states=image, encoder_hidden_states=text, temb=embedding, image_rotary_emb=tables)
        return image, text

    made = region(run)
    return lambda streams, given: made(*streams, *given[:3])


def packed(latents: Tensor) -> Tensor:
    """Latents (n, c, 2h, 2w) to tokens (n, h · w, 4c)."""
    tokens = latents.unflatten(-1, (-1, PACKED)).unflatten(-3, (-1, PACKED)).permute(0, 2, 4, 1, 3, 5)
    return tokens.flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse: tokens (n, h · w, 4c) to (n, c, 2h, 2w)."""
    pieces = tokens.view(len(tokens), height, width, -1, PACKED, PACKED).permute(0, 3, 1, 4, 2, 5)
    return pieces.reshape(len(tokens), -1, height * PACKED, width * PACKED)


def places(tokens: int, height: int, width: int, device: torch.device) -> Tensor:
    """Where each token is, (tokens + h · w, 3): text at 0, then patches at (0, row, column)."""
    import torch

    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    image = torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
    return torch.cat([torch.zeros(tokens, 3, dtype=image.dtype, device=device), image])


FLUX = FluxFamily()
