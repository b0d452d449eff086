"""The items of an unrolled UNet, made of regions, and what they look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

UNet: TypeAlias = UNet2DConditionModel | UNet2DModel
Region: TypeAlias = Callable[..., Tensor]  # of tensors whose first dimension is rows
Made = TypeVar("Made", bound=Tensor | tuple[Tensor, ...])


class MakeRegion(Protocol):
    """Compiles a part of a network, or leaves it as it is."""

    def __call__(self, part: Callable[..., Made], /) -> Callable[..., Made]:
        """The same function of tensors whose first dimension is rows, or 1."""


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


def as_it_is(part: Callable[..., Made], /) -> Callable[..., Made]:
    """The region of what is not compiled."""
    return part


def embedding(unet: UNet) -> Region:
    """The time embedding (rows, dim), of timesteps, pooled, sizes, labels and guidance: what the UNet has of them."""
    conditional = unet if isinstance(unet, UNet2DConditionModel) else None
    adds = conditional is not None and conditional.config["addition_embed_type"] is not None
    act = conditional.time_embed_act if conditional is not None else None

    def run(
        timesteps: Tensor, pooled: Tensor | None, sizes: Tensor | None, labels: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        dtype = unet.conv_in.weight.dtype
        embedding: Tensor = unet.time_embedding(unet.time_proj(timesteps).to(dtype), guidance)
        if unet.class_embedding is not None:
            embedding = embedding + unet.class_embedding(labels).to(dtype)
        if adds:
            embedding = embedding + unet.get_aug_embed(embedding, None, {"text_embeds": pooled, "time_ids": sizes})
        return embedding if act is None else cast(Tensor, act(embedding))

    return run


def head(unet: UNet) -> Region:
    """The last hidden tensor to the prediction."""
    norm, act, conv = unet.conv_norm_out, unet.conv_act, unet.conv_out
    if norm is None:
        return cast(Region, conv)
    return lambda hidden: conv(act(norm(hidden)))


def conv_in(conv: nn.Module) -> EncoderItem:
    """The first one, which looks at nothing else."""
    return lambda hidden, given: conv(hidden)


def down_items(block: nn.Module, region: MakeRegion) -> list[EncoderItem]:
    """One item per resnet (with its attention), one per downsampler."""

    def resnet_item(resnet: nn.Module, attend: Attend) -> EncoderItem:
        run = region(resnet)
        return lambda hidden, given: attend(run(hidden, given.embedding), given.context)

    def down_item(downsampler: nn.Module) -> EncoderItem:
        if isinstance(downsampler, ResnetBlock2D):
            run = region(downsampler)
            return lambda hidden, given: run(hidden, given.embedding)
        return lambda hidden, given: downsampler(hidden)

    items = [resnet_item(resnet, attend) for resnet, attend in _layers(block, region)]
    return items + [down_item(downsampler) for downsampler in cast(Any, block.downsamplers) or ()]


def middle_items(block: nn.Module, region: MakeRegion) -> list[EncoderItem]:
    """One item per resnet; each but the first has an attention before it."""

    def item(attend: Attend, resnet: nn.Module) -> EncoderItem:
        run = region(resnet)
        return lambda hidden, given: run(attend(hidden, given.context), given.embedding)

    resnets = list(cast(nn.ModuleList, block.resnets))
    attentions = [None, *cast(nn.ModuleList, block.attentions)]
    return [item(_attend(attention, region), resnet) for attention, resnet in zip(attentions, resnets, strict=True)]


def up_items(block: nn.Module, region: MakeRegion) -> list[DecoderItem]:
    """One item per resnet (with its attention); the block's upsampler belongs to its last one."""

    def item(resnet: nn.Module, attend: Attend, upsample: Callable[..., Tensor] | None) -> DecoderItem:
        joined = region(lambda hidden, skip, embedding: resnet(torch.cat([hidden, skip], dim=1), embedding))

        def run(hidden: Tensor, skip: Tensor, size: torch.Size | None, given: Given) -> Tensor:
            hidden = attend(joined(hidden, skip, given.embedding), given.context)
            return hidden if upsample is None else upsample(hidden, size, given)

        return run

    def upsampling(upsampler: nn.Module) -> Callable[..., Tensor]:
        if isinstance(upsampler, ResnetBlock2D):
            run = region(upsampler)
            return lambda hidden, size, given: run(hidden, given.embedding)
        return lambda hidden, size, given: upsampler(hidden, size)

    layers = _layers(block, region)
    upsamplers = list(cast(Any, block.upsamplers) or ())
    last = upsampling(upsamplers[0]) if upsamplers else None
    return [item(*layer, last if layer is layers[-1] else None) for layer in layers]


Attend = Callable[[Tensor, Tensor | None], Tensor]


def _layers(block: nn.Module, region: MakeRegion) -> list[tuple[nn.Module, Attend]]:
    """The block's resnets, each with the attention that follows it (or one that does nothing)."""
    resnets = list(cast(nn.ModuleList, block.resnets))
    attentions = list(cast(Any, getattr(block, "attentions", None)) or [None] * len(resnets))
    return [(resnet, _attend(attention, region)) for resnet, attention in zip(resnets, attentions, strict=True)]


def _attend(attention: nn.Module | None, region: MakeRegion) -> Attend:
    """An attention of hidden tensor and context; where there is none, what does nothing."""
    if attention is None:
        return lambda hidden, context: hidden
    if isinstance(attention, Attention):
        alone = region(attention)
        return lambda hidden, context: alone(hidden)
    return region(lambda hidden, context: attention(hidden, encoder_hidden_states=context, return_dict=False)[0])
