"""PixArt-α and Σ (arXiv 2310.00426, 2403.04692): a transformer over patches that attends to the tokens of a text in each block.

The embedding of time, and with it the modulation, is made once a call for all blocks, each of which adds a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

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
    from engine.families.transformer import Block, Parts, Streams
    from engine.items import MakeRegion

CLASS = "PixArtTransformer2DModel"
# Settings that change the forward pass, and the values of them that run; those from the third on are of the old class.
SETTINGS: dict[str, tuple[object, ...]] = {
    "norm_type": ("ada_norm_single",),
    "attention_type": (None, "default"),
    "num_vector_embeds": (None,),
    "double_self_attention": (None, False),
    "only_cross_attention": (None, False),
}
NORMAL_SIZE = 128  # latents as large as this are told of their size, unless the configuration says otherwise


@dataclass(frozen=True)
class PixArtFamily(TransformerFamily):
    """It draws texts that T5 reads."""

    classes: tuple[str, ...] = (CLASS, OLD_CLASS)

    @override
    def name(self, config: Mapping[str, Any]) -> FamilyName:
        return "pixart-transformer2d"

    @override
    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        refuse_settings(config, SETTINGS)
        made = completed(config, CLASS, ["cross_attention_dim"])
        told = made["use_additional_conditions"]
        made["use_additional_conditions"] = made["sample_size"] == NORMAL_SIZE if told is None else told
        width = made["num_attention_heads"] * made["attention_head_dim"]
        if made["use_additional_conditions"] and width % 3:
            message = f"is on in the transformer config, which needs a width that 3 divides, got {width}"
            raise Unsupported(message, param="use_additional_conditions")
        if made["caption_channels"] is not None and made["cross_attention_dim"] != width:
            message = f"must be the width of the transformer ({width}), to which texts are projected"
            raise Unsupported(f"{message}, got {made['cross_attention_dim']}", param="cross_attention_dim")
        return made

    @override
    def written(self, files: Folder) -> dict[str, Any]:
        from engine.components import known_config

        config = known_config(files, self.component, self.classes)
        refuse_settings(config, SETTINGS)
        return config

    @override
    def parts(self, module: nn.Module, region: MakeRegion) -> Parts:
        return _parts(module, region)

    @override
    def condition(self, config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
        import torch

        from engine.condition import PIXART_SIZES, Condition

        width = config["caption_channels"] or config["cross_attention_dim"]
        sizes = torch.empty(1, PIXART_SIZES) if config["use_additional_conditions"] else None
        return Condition(torch.empty(1, tokens, width), sizes=sizes, mask=torch.ones(1, tokens, dtype=torch.bool))


@dataclass(frozen=True)
class _Given:
    """What the blocks and the head look at beside the stream.

    modulation (rows, 6 · width) and embedding (rows, width): of the time. text (rows, tokens, width). bias (rows, 1, tokens):
    0 for a token that is seen. height and width: in patches.
    """

    modulation: Tensor
    embedding: Tensor
    text: Tensor
    bias: Tensor
    height: int
    width: int


UNSEEN = -10000.0  # what diffusers adds to the scores of padding


def _parts(pixart: Any, region: MakeRegion) -> Parts:
    from engine.families.transformer import Parts, unpatched

    first, patch = pixart.pos_embed.proj.weight, pixart.config["patch_size"]
    patches = _Patches(pixart.pos_embed)

    def before(sample: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Streams, _Given]:
        text, seen, sizes = condition.context, condition.mask, condition.sizes
        assert text is not None, "of all texts"
        assert seen is not None, "of all texts"
        hidden, rows = patches(sample), len(sample)
        told = None if sizes is None else {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
        modulation, embedding = pixart.adaln_single(timesteps, told, batch_size=rows, hidden_dtype=hidden.dtype)
        if pixart.caption_projection is not None:
            text = pixart.caption_projection(text)
        bias = (1 - seen[:, None].to(hidden.dtype)) * UNSEEN
        return (hidden,), _Given(modulation, embedding, text, bias, sample.shape[-2] // patch, sample.shape[-1] // patch)

    def block(module: nn.Module) -> Block:
        def attending(hidden: Tensor, modulation: Tensor, text: Tensor, bias: Tensor) -> Tensor:
            made: Tensor = module(hidden, timestep=modulation, encoder_hidden_states=text, encoder_attention_mask=bias)
            return made

        run = region(attending)
        return lambda streams, given: (run(streams[0], given.modulation, given.text, given.bias),)

    def modulated(hidden: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = (pixart.scale_shift_table[None] + embedding[:, None]).chunk(2, dim=1)
        made: Tensor = pixart.proj_out(pixart.norm_out(hidden) * (1 + scale) + shift)
        return made

    last = region(modulated)

    def head(hidden: Tensor, given: _Given) -> Tensor:
        return unpatched(last(hidden, given.embedding), given.height, given.width, patch)

    return Parts(before, [block(module) for module in pixart.transformer_blocks], head, first, patch)


class _Patches:
    """diffusers' embedding of patches, which computes a table of positions at every call for all sizes but one: kept here."""

    def __init__(self, embed: Any) -> None:
        self._embed = embed
        self._tables: dict[tuple[int, int], Tensor] = {}

    def __call__(self, sample: Tensor) -> Tensor:
        """(rows, tokens, width) of latents (rows, c, h, w)."""
        size = sample.shape[-2] // self._embed.patch_size, sample.shape[-1] // self._embed.patch_size
        if size == (self._embed.height, self._embed.width):
            made: Tensor = self._embed(sample)
            return made
        hidden: Tensor = self._embed.proj(sample).flatten(2).transpose(1, 2)
        return (hidden + self._table(size, sample.device)).to(hidden.dtype)

    def _table(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """(1, tokens, width), float32."""
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        if size not in self._tables:
            scales = {"base_size": self._embed.base_size, "interpolation_scale": self._embed.interpolation_scale}
            width = self._embed.proj.out_channels
            table = get_2d_sincos_pos_embed(width, size, **scales, device=device, output_type="pt")
            self._tables[size] = table.float()[None]
        return self._tables[size]


PIXART = PixArtFamily()
