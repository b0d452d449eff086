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

Items are made of regions: the time embedding, each resnet, each attention, the head. They are what may be compiled, being what
all kinds of step share, and where there is anything to fuse; the first convolution and those that sample are left as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from engine.branches import refuse_branch
from engine.condition import Condition
from engine.config import refuse_unknown
from engine.denoiser import Denoiser
from engine.device import Fence, Lane, fence, lane
from engine.items import (
    DecoderItem,
    EncoderItem,
    Given,
    MakeRegion,
    UNet,
    as_it_is,
    conv_in,
    down_items,
    embedding,
    head,
    middle_items,
    up_items,
)
from registry.errors import Unsupported
from registry.schedule import Branch


class UnrolledUNet(Denoiser):
    """A diffusers UNet that can run in part: the same modules and weights, listed flat instead of nested in blocks.

    `encoder` and `decoder` are the items in running order, one of each for every skip connection; `branches` is their number,
    and so the largest branch. A partial step of branch s runs the outermost s items of both lists.
    """

    def __init__(self, unet: UNet, compiled: MakeRegion | None = None) -> None:
        """The modules stay those of `unet`, which still works. `compiled` compiles regions (`engine.compiling`); weights and
        hidden tensors are then laid out channels last. Raises `Unsupported` naming what cannot be unrolled.
        """
        refuse_unknown({**unet.config, "_class_name": type(unet).__name__})
        self.unet = unet
        self.channels_last = compiled is not None
        if self.channels_last:
            unet.to(memory_format=torch.channels_last)
        region: MakeRegion = compiled or as_it_is
        self._embedding, self._head = region(embedding(unet)), region(head(unet))
        self.encoder: list[EncoderItem] = [conv_in(unet.conv_in)]
        for block in unet.down_blocks:
            self.encoder += down_items(block, region)
        self._middle: list[EncoderItem] = middle_items(unet.mid_block, region) if unet.mid_block is not None else []
        self.decoder: list[DecoderItem] = []  # in running order: the item of branch 1 is the last
        for block in unet.up_blocks:
            self.decoder += up_items(block, region)
        if len(self.decoder) != self.branches:
            raise Unsupported(f"the UNet has {self.branches} skips but {len(self.decoder)} decoder items", param="unet")

    @property
    @override
    def module(self) -> nn.Module:
        return self.unet

    @property
    @override
    def branches(self) -> int:
        return len(self.encoder)

    @property
    @override
    def size_multiple(self) -> int:
        return 2 ** sum(block.downsamplers is not None for block in self.unet.down_blocks)

    # Of the first weight: diffusers' own `unet.device` and `unet.dtype` walk over all parameters, a millisecond each time.
    @property
    @override
    def device(self) -> torch.device:
        return cast(Tensor, self.unet.conv_in.weight).device

    @property
    @override
    def dtype(self) -> torch.dtype:
        return cast(Tensor, self.unet.conv_in.weight).dtype

    @override
    def fence(self) -> Fence:
        return fence(self.device)

    @override
    def lane(self) -> Lane:
        return lane(self.device)

    def given(self, timesteps: Tensor, condition: Condition) -> Given:
        """What the items look at beside the hidden tensor. timesteps (rows,), one condition per row."""
        context, pooled, sizes, guidance = (
            None if tensor is None else tensor.to(self.dtype)
            for tensor in (condition.context, condition.pooled, condition.sizes, condition.guidance)
        )
        return Given(self._embedding(timesteps, pooled, sizes, condition.labels, guidance), context)

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        """The whole UNet, as its own `forward` runs it.

        sample (rows, c, h, w) in any float type, timesteps (rows,), one condition per row.
        Returns the prediction (rows, c, h, w) and, for each branch in `keep`, the deep feature that entered its decoder item.
        """
        given = self.given(timesteps, condition)
        hidden, skips = self._encode(self._shown(sample, condition), self.branches, given)
        for item in self._middle:
            hidden = item(hidden, given)
        kept: dict[Branch, Tensor] = {}
        for branch in range(self.branches, 0, -1):
            if branch in keep:
                kept[branch] = hidden
            hidden = self._decode(hidden, skips, branch, given)
        return self._head(hidden).to(sample.dtype), kept

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        """The outermost `branch` items only, from `feature` on: the deep feature kept for this branch, one per row.

        sample, timesteps, condition and the prediction are as in `full`. Raises `InvalidInput` for a branch that is none.
        """
        refuse_branch(self.branches, branch)
        assert isinstance(branch, int), "all others are refused"
        given = self.given(timesteps, condition)
        _, skips = self._encode(self._shown(sample, condition), branch, given)
        hidden = feature
        for item in range(branch, 0, -1):
            hidden = self._decode(hidden, skips, item, given)
        return self._head(hidden).to(sample.dtype)

    def _shown(self, sample: Tensor, condition: Condition) -> Tensor:
        """What goes into the UNet: the latents, and beside them the pictures of those that have any."""
        sample = sample.to(self.dtype)
        return sample if condition.picture is None else torch.cat([sample, condition.picture.to(self.dtype)], dim=1)

    def _encode(self, sample: Tensor, items: int, given: Given) -> tuple[Tensor, list[Tensor]]:
        """Run the first encoder items. Returns what the last one made, and the skips of all."""
        hidden = sample
        skips: list[Tensor] = []
        if self.unet.config["center_input_sample"]:
            hidden = 2 * hidden - 1
        for item in self.encoder[:items]:
            hidden = item(hidden, given)
            skips.append(hidden)
        return hidden, skips

    def _decode(self, hidden: Tensor, skips: list[Tensor], branch: int, given: Given) -> Tensor:
        """Run the decoder item of this branch, which consumes the skip that encoder item `branch` made."""
        size = skips[branch - 2].shape[-2:] if branch > 1 else None
        return self.decoder[-branch](hidden, skips[branch - 1], size, given)
