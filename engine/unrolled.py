"""A diffusers UNet unrolled: its nested blocks taken apart into flat lists of items, on the same weights.

diffusers nests a UNet's layers: down blocks, a middle and up blocks, each with resnets, attentions and samplers of its own,
and one `forward` that runs all of them. A partial step must stop and start in the middle of a block, which that `forward`
cannot do. So the layers are listed one after the other, an encoder item for each tensor that a skip connection carries over
and a decoder item for each one that takes it in; full and partial steps are then two ways through the same lists.

Encoder item k (1-based) makes the k-th skip; decoder items consume the skips in reverse, so decoder item k, counted from
the output side, consumes what encoder item k made:

    conv_in ─ resnet ─ … ─ downsampler ─ …  n encoder items
       │        │              │         └─ middle
    head ──── item 1 ──── … ─ item k ─ …    n decoder items, counted from the output side

A full step runs everything. A partial step with branch s runs encoder items 1…s, takes the tensor that entered decoder
item s at the last full step, and runs decoder items s…1 (DeepCache, arXiv 2312.00858, figure 3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from engine.condition import Condition
from engine.config import refuse_unknown
from engine.device import Fence, Lane, fence, lane
from registry.errors import InvalidInput, Unsupported

UNet: TypeAlias = UNet2DConditionModel | UNet2DModel


@dataclass(frozen=True)
class Given:
    """What every item may look at beside the hidden tensor: the time embedding (rows, dim) and the context, if there is one.

    context (rows, tokens, dim). The embedding also carries the class label and the added conditioning where a model has them.
    """

    embedding: Tensor
    context: Tensor | None


class EncoderItem(Protocol):
    """A resnet with its attention, a downsampler, or the first convolution."""

    def __call__(self, hidden: Tensor, given: Given) -> Tensor:
        """(rows, c, h, w) to (rows, c', h', w'), which is also the skip."""


class DecoderItem(Protocol):
    """A resnet with its attention; the last one of a block also upsamples."""

    def __call__(self, hidden: Tensor, skip: Tensor, size: torch.Size | None, given: Given) -> Tensor:
        """Hidden tensor (rows, c, h, w) and its skip, of the same height and width, to (rows, c', h', w').

        `size` is the height and width that an upsampler must reach: those of the next item's skip, None for the last item.
        """


class UnrolledUNet:
    """A diffusers UNet that can run in part: the same modules and weights, listed flat instead of nested in blocks.

    `encoder` and `decoder` are the items in running order, one of each for every skip connection; `branches` is their number,
    and so the largest branch. A partial step of branch s runs the outermost s items of both lists.
    """

    def __init__(self, unet: UNet) -> None:
        """The modules stay those of `unet`, which still works. Raises `Unsupported` naming what cannot be unrolled."""
        refuse_unknown({**unet.config, "_class_name": type(unet).__name__})
        self.unet = unet
        self.encoder: list[EncoderItem] = [_conv_in(unet.conv_in)]
        for block in unet.down_blocks:
            self.encoder += _down_items(block)
        self.decoder: list[DecoderItem] = []  # in running order: the item of branch 1 is the last
        for block in unet.up_blocks:
            self.decoder += _up_items(block)
        self.branches = len(self.encoder)
        if len(self.decoder) != self.branches:
            raise Unsupported(f"the UNet has {self.branches} skips but {len(self.decoder)} decoder items", param="unet")

    # Of the first weight: diffusers' own `unet.device` and `unet.dtype` walk over all parameters, a millisecond each time.
    @property
    def device(self) -> torch.device:
        """Where the UNet computes."""
        return cast(Tensor, self.unet.conv_in.weight).device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return cast(Tensor, self.unet.conv_in.weight).dtype

    def fence(self) -> Fence:
        """A fence behind every call so far."""
        return fence(self.device)

    def lane(self) -> Lane:
        """A new lane of the device, beside these calls."""
        return lane(self.device)

    def given(self, timesteps: Tensor, condition: Condition) -> Given:
        """What the items look at beside the hidden tensor. timesteps (rows,), one condition per row."""
        unet, dtype = self.unet, self.dtype
        context = None if condition.context is None else condition.context.to(dtype)
        embedding: Tensor = unet.time_embedding(unet.time_proj(timesteps).to(dtype))
        if unet.class_embedding is not None:
            embedding = embedding + unet.class_embedding(condition.labels).to(dtype)
        if isinstance(unet, UNet2DConditionModel):
            if unet.config["addition_embed_type"] is not None:
                added = {"text_embeds": condition.pooled, "time_ids": condition.sizes}
                embedding = embedding + unet.get_aug_embed(embedding, context, added)
            if unet.time_embed_act is not None:
                embedding = unet.time_embed_act(embedding)
        return Given(embedding, context)

    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The whole UNet, as its own `forward` runs it.

        sample (rows, c, h, w) in any float type, timesteps (rows,), one condition per row.
        Returns the prediction (rows, c, h, w) and, for each branch in `keep`, the deep feature that entered its decoder item.
        """
        given = self.given(timesteps, condition)
        hidden, skips = self._encode(sample, self.branches, given)
        hidden = self._middle(hidden, given)
        kept: dict[int, Tensor] = {}
        for branch in range(self.branches, 0, -1):
            if branch in keep:
                kept[branch] = hidden
            hidden = self._decode(hidden, skips, branch, given)
        return self._head(hidden).to(sample.dtype), kept

    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: int, feature: Tensor) -> Tensor:
        """The outermost `branch` items only, from `feature` on: the deep feature kept for this branch, one per row.

        sample, timesteps, condition and the prediction are as in `full`. Raises `InvalidInput` for a branch that is none.
        """
        self.check_branch(branch)
        given = self.given(timesteps, condition)
        _, skips = self._encode(sample, branch, given)
        hidden = feature
        for item in range(branch, 0, -1):
            hidden = self._decode(hidden, skips, item, given)
        return self._head(hidden).to(sample.dtype)

    def check_branch(self, branch: int) -> None:
        """Raises `InvalidInput` unless 1 ≤ branch ≤ `branches`."""
        if not 1 <= branch <= self.branches:
            raise InvalidInput(f"must be between 1 and {self.branches} for this UNet, got {branch}", param="branch")

    def compile(self, **options: Any) -> None:
        """Give each resnet, attention and sampler to torch.compile, in place; `options` are torch's.

        Piece by piece, because many partial steps share them, and equal pieces share their compiled code.
        """
        for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
            for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
                for module in getattr(block, name, None) or ():
                    if module is not None:
                        module.compile(**options)

    def _encode(self, sample: Tensor, items: int, given: Given) -> tuple[Tensor, list[Tensor]]:
        """Run the first encoder items. Returns what the last one made, and the skips of all."""
        hidden, skips = sample.to(self.dtype), list[Tensor]()
        if self.unet.config["center_input_sample"]:
            hidden = 2 * hidden - 1
        for item in self.encoder[:items]:
            hidden = item(hidden, given)
            skips.append(hidden)
        return hidden, skips

    def _middle(self, hidden: Tensor, given: Given) -> Tensor:
        middle = self.unet.mid_block
        if middle is None:
            return hidden
        if getattr(middle, "has_cross_attention", False):
            return cast(Tensor, middle(hidden, given.embedding, encoder_hidden_states=given.context))
        return cast(Tensor, middle(hidden, given.embedding))

    def _decode(self, hidden: Tensor, skips: list[Tensor], branch: int, given: Given) -> Tensor:
        """Run the decoder item of this branch, which consumes the skip that encoder item `branch` made."""
        size = skips[branch - 2].shape[-2:] if branch > 1 else None
        return self.decoder[-branch](hidden, skips[branch - 1], size, given)

    def _head(self, hidden: Tensor) -> Tensor:
        unet = self.unet
        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return cast(Tensor, unet.conv_out(hidden))


def _conv_in(conv: nn.Module) -> EncoderItem:
    return lambda hidden, given: conv(hidden)


def _down_items(block: nn.Module) -> list[EncoderItem]:
    """One item per resnet (with its attention), one per downsampler."""

    def resnet_item(resnet: nn.Module, attend: Attend) -> EncoderItem:
        return lambda hidden, given: attend(resnet(hidden, given.embedding), given.context)

    def down_item(downsampler: nn.Module) -> EncoderItem:
        if isinstance(downsampler, ResnetBlock2D):
            return lambda hidden, given: downsampler(hidden, given.embedding)
        return lambda hidden, given: downsampler(hidden)

    items = [resnet_item(resnet, attend) for resnet, attend in _layers(block)]
    return items + [down_item(downsampler) for downsampler in cast(Any, block.downsamplers) or ()]


def _up_items(block: nn.Module) -> list[DecoderItem]:
    """One item per resnet (with its attention); the block's upsampler belongs to its last one."""

    def item(resnet: nn.Module, attend: Attend, upsample: Callable[..., Tensor] | None) -> DecoderItem:
        def run(hidden: Tensor, skip: Tensor, size: torch.Size | None, given: Given) -> Tensor:
            hidden = resnet(torch.cat([hidden, skip], dim=1), given.embedding)
            hidden = attend(hidden, given.context)
            return hidden if upsample is None else upsample(hidden, size, given)

        return run

    def upsampling(upsampler: nn.Module) -> Callable[..., Tensor]:
        if isinstance(upsampler, ResnetBlock2D):
            return lambda hidden, size, given: upsampler(hidden, given.embedding)
        return lambda hidden, size, given: upsampler(hidden, size)

    layers = _layers(block)
    upsamplers = list(cast(Any, block.upsamplers) or ())
    last = upsampling(upsamplers[0]) if upsamplers else None
    return [item(*layer, last if layer is layers[-1] else None) for layer in layers]


Attend = Callable[[Tensor, Tensor | None], Tensor]


def _layers(block: nn.Module) -> list[tuple[nn.Module, Attend]]:
    """The block's resnets, each with the attention that follows it (or one that does nothing)."""

    def attend(attention: nn.Module | None) -> Attend:
        if attention is None:
            return lambda hidden, context: hidden
        if isinstance(attention, Attention):
            return lambda hidden, context: attention(hidden)
        return lambda hidden, context: attention(hidden, encoder_hidden_states=context, return_dict=False)[0]

    resnets = list(cast(nn.ModuleList, block.resnets))
    attentions = list(cast(Any, getattr(block, "attentions", None)) or [None] * len(resnets))
    return [(resnet, attend(attention)) for resnet, attention in zip(resnets, attentions, strict=True)]
