"""A diffusion transformer unrolled: what goes before its blocks, the blocks, and what comes after, on the same weights.

A transformer's tensors have one shape from the first block to the last, so a partial step may leave out any run of blocks in
the middle. With n blocks at the front and m of L at the back, a full step keeps what the middle added,

    r = h(L − m) − h(n),        h(k): what the first k blocks made

and a partial step (n, m) runs the first n blocks on the new latent, adds r, and runs the last m (Δ-DiT, arXiv 2406.01125):

    before ─ block 1 ─ … ─ block n ─ (+ r) ─ block L−m+1 ─ … ─ block L ─ head

New at every step are the patches of the latent and the embedding of the time, and with it the modulation of each block that
runs. Nothing of the middle is needed but r. n and m may be 0.

Where text has a stream of its own it has a part of r as well, behind the image's along the tokens; but the head reads the image
alone, so for m = 0 there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from engine.branches import BlockPairs, refuse_branch
from engine.condition import Condition
from engine.denoiser import Denoiser
from engine.device import Fence, Lane, fence, lane
from engine.macs import Macs, counting
from registry.schedule import Blocks, Branch

Streams: TypeAlias = tuple[Tensor, ...]  # (rows, tokens, width) each: the image's, then the text's where that has one
Block: TypeAlias = Callable[[Streams, Any], Streams]  # the second: what `Parts.before` gives to all

HALF_RANGE = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Parts:
    """A transformer taken apart.

    before: sample (rows, c, h, w), timesteps (rows,) and conditions to the streams that enter the first block, and whatever the
    blocks and the head look at beside them. blocks: in running order. head: the image's stream to a prediction
    (rows, c′, h, w), of which the channels beyond the sample's are no part of the latent (a learned variance).
    first: a weight that is where, and of the type in which, it computes. size_multiple: of height and width of latents.
    """

    before: Callable[[Tensor, Tensor, Condition], tuple[Streams, Any]]
    blocks: Sequence[Block]
    head: Callable[[Tensor, Any], Tensor]
    first: Tensor
    size_multiple: int


class UnrolledTransformer(Denoiser):
    """A diffusers transformer that can run in part. Features are residuals (rows, tokens, width)."""

    channels_last = False

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        self._module, self.parts = module, parts

    @property
    @override
    def module(self) -> nn.Module:
        return self._module

    @property
    @override
    def branches(self) -> BlockPairs:
        return BlockPairs(len(self.parts.blocks))

    @property
    @override
    def device(self) -> torch.device:
        return self.parts.first.device

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.parts.first.dtype

    @property
    @override
    def size_multiple(self) -> int:
        return self.parts.size_multiple

    @override
    def fence(self) -> Fence:
        return fence(self.device)

    @override
    def lane(self) -> Lane:
        return lane(self.device)

    @override
    def full(
        self, sample: Tensor, timesteps: Tensor, condition: Condition, keep: Collection[Branch] = ()
    ) -> tuple[Tensor, dict[Branch, Tensor]]:
        streams, given = self.parts.before(sample.to(self.dtype), timesteps, condition)
        kept = {branch: self._middle(branch) for branch in keep if isinstance(branch, Blocks)}
        places = {place for middle in kept.values() for place in (middle.start, middle.stop)}
        made = dict[int, Streams]()
        for place, block in enumerate(self.parts.blocks):
            if place in places:
                made[place] = streams
            streams = block(streams, given)
        made[len(self.parts.blocks)] = streams
        residuals: dict[Branch, Tensor] = {
            branch: _residual(branch, made[middle.stop], made[middle.start]) for branch, middle in kept.items()
        }
        return self._predicted(sample, streams, given), residuals

    @override
    def partial(self, sample: Tensor, timesteps: Tensor, condition: Condition, branch: Branch, feature: Tensor) -> Tensor:
        middle = self._middle(branch)
        streams, given = self.parts.before(sample.to(self.dtype), timesteps, condition)
        for block in self.parts.blocks[: middle.start]:
            streams = block(streams, given)
        streams = _added(streams, feature)
        for block in self.parts.blocks[middle.stop :]:
            streams = block(streams, given)
        return self._predicted(sample, streams, given)

    def _middle(self, branch: Branch) -> range:
        """The blocks that a partial step leaves out."""
        refuse_branch(self.branches, branch)
        assert isinstance(branch, Blocks), "all others are refused"
        return range(branch.front, len(self.parts.blocks) - branch.back)

    def _predicted(self, sample: Tensor, streams: Streams, given: Any) -> Tensor:
        return self.parts.head(streams[0], given)[:, : sample.shape[1]].to(sample.dtype)


def count(
    network: UnrolledTransformer, latent_shape: tuple[int, int, int], condition: Condition
) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
    """As `Family.count`, of any transformer: each block once, for it takes the same in all steps that it is part of."""
    sample, timesteps = torch.empty(1, *latent_shape, device="meta"), torch.zeros(1, device="meta")
    branches = network.branches.all
    one_each = {bool(branch.back): branch for branch in branches}  # residuals of two shapes, as text is read behind the middle
    with counting(network.module) as so_far:
        each = list[Macs]()

        def counted(block: Block) -> Block:
            def run(streams: Streams, given: Any) -> Streams:
                before = so_far()
                made = block(streams, given)
                each.append(so_far() - before)
                return made

            return run

        parts = replace(network.parts, blocks=[counted(block) for block in network.parts.blocks])
        _, residuals = UnrolledTransformer(network.module, parts).full(sample, timesteps, condition, keep=one_each.values())
        full = so_far()
    outside = full - sum(each, Macs(0, 0))
    front, back = list(accumulate(each, initial=outside)), list(accumulate(reversed(each), initial=Macs(0, 0)))
    partial: dict[Branch, Macs] = {
        branch: front[branch.front] + back[branch.back] for branch in branches
    }  # the same blocks on the same shapes
    shapes = {back: tuple(residuals[branch].shape[1:]) for back, branch in one_each.items()}
    return full, partial, {branch: shapes[bool(branch.back)] for branch in branches}


def _residual(branch: Branch, after: Streams, before: Streams) -> Tensor:
    """What the middle added to the streams that are read behind it, one behind the other along the tokens.

    The difference of two large numbers, which torch takes in float32 whatever their type, and rounds once. In float16, where
    FLUX's blocks hold their streams within its range, the difference of two of them is held there too.
    """
    assert isinstance(branch, Blocks), "a transformer's"
    read = slice(None) if branch.back else slice(1)
    parts = [_held(one - other) for one, other in zip(after[read], before[read], strict=False)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _added(streams: Streams, residual: Tensor) -> Streams:
    """The streams with a residual of as many of them as it has."""
    made, start = list[Tensor](), 0
    for stream in streams:
        if start < residual.shape[1]:
            stream = _held(stream + residual[:, start : start + stream.shape[1]])
            start += stream.shape[1]
        made.append(stream)
    return tuple(made)


def _held(stream: Tensor) -> Tensor:
    """Within the range of float16, where it is of that type."""
    return stream.clamp(-HALF_RANGE, HALF_RANGE) if stream.dtype == torch.float16 else stream


def unpatched(patches: Tensor, height: int, width: int, patch: int) -> Tensor:
    """(rows, c, h, w) of patches (rows, height · width, patch · patch · c)."""
    square = patches.view(len(patches), height, width, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", square).flatten(4, 5).flatten(2, 3)
