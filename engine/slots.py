"""The memory of UNet rows in flight: preallocated, so that it is bounded, known beforehand, and never fragments or moves.

An image holds a slot for each of its UNet rows, one or with classifier-free guidance two, from the moment it joins until it
leaves. A slot holds all that the row needs on the device: its latent, the clean latent predicted one step before, its
condition, and a cached deep feature, of whichever branch the image's current segment reuses: there is room for the largest
branch's feature, and a smaller one uses a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from engine.condition import Condition

FLOAT32_BYTES = 4
Shape = tuple[int, int, int]


class Slots:
    """`capacity` slots, and one more of nobody's, `scratch`. Latents are float32; all else has the UNet's `dtype`.

    Features are laid out as the network makes them: (h, w, c) if it runs in `channels_last`, else (c, h, w).
    """

    def __init__(
        self,
        latent: Shape,
        features: Mapping[int, Shape],
        condition: Condition,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = False,
    ) -> None:
        """`latent` (c, h, w); `features`: the cached feature's (c, h, w) for each branch that schedules may use; `condition`:
        one row of the kind that the network takes, on any device.
        """
        self.capacity = self.scratch = capacity
        self._shapes, self._channels_last = features, channels_last
        self._latent = torch.zeros(capacity + 1, *latent, device=device)
        self._clean = torch.zeros_like(self._latent)
        self._feature = torch.zeros(capacity + 1, max(map(prod, features.values())), device=device, dtype=dtype)
        self._condition = condition.map(
            lambda row: torch.zeros(capacity + 1, *row.shape[1:], device=device, dtype=_stored(row, dtype))
        )
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self._latent.device

    @property
    def branches(self) -> Sequence[int]:
        """Those whose features fit."""
        return list(self._shapes)

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    @property
    def bytes(self) -> int:
        """All the memory, held or not."""
        return sum(memory.nbytes for memory in (self._latent, self._clean, self._feature, *self._condition.tensors))

    def take(self, count: int) -> list[int]:
        """Hold `count` slots. There must be as many free ones."""
        assert count <= self.free, f"{count} slots wanted, {self.free} free"
        return [self._free.pop() for _ in range(count)]

    def give_back(self, slots: Sequence[int]) -> None:
        """Free these slots."""
        self._free.extend(slots)

    def put(self, slot: int, latent: Tensor, condition: Condition) -> None:
        """Begin a trajectory at this latent (c, h, w) under this condition of one row."""
        self._latent[slot] = latent
        self._clean[slot] = 0
        for memory, row in zip(self._condition.tensors, condition.tensors, strict=True):
            memory[slot] = row[0]

    def latent(self, slot: int) -> Tensor:
        """A copy of one latent (c, h, w)."""
        return self._latent[slot].clone()

    def clean(self, slot: int) -> Tensor:
        """A copy of the clean latent (c, h, w) that the last step predicted."""
        return self._clean[slot].clone()

    def state(self, slots: Tensor) -> tuple[Tensor, Tensor, Condition]:
        """Latents and the clean latents before them, (n, c, h, w) each, and the conditions. slots (n,)."""
        condition = self._condition.map(lambda memory: memory.index_select(0, slots))
        return self._latent.index_select(0, slots), self._clean.index_select(0, slots), condition

    def advance(self, slots: Tensor, latent: Tensor, clean: Tensor) -> None:
        """Store what `state` will read next."""
        self._latent.index_copy_(0, slots, latent)
        self._clean.index_copy_(0, slots, clean)

    def add(self, slot: int, noise: Tensor, level: float) -> None:
        """Add so much of this noise (c, h, w) to a latent."""
        self._latent[slot].add_(noise, alpha=level)

    def feature(self, slots: Tensor, branch: int) -> Tensor:
        """Cached features (n, c, h, w) of one branch."""
        c, h, w = self._shapes[branch]
        stored = self._feature[:, : c * h * w].index_select(0, slots)
        return stored.view(-1, h, w, c).permute(0, 3, 1, 2) if self._channels_last else stored.view(-1, c, h, w)

    def keep(self, slots: Tensor, feature: Tensor) -> None:
        """Cache features (n, c, h, w) in these slots."""
        stored = feature.permute(0, 2, 3, 1) if self._channels_last else feature
        self._feature[:, : feature[0].numel()].index_copy_(0, slots, stored.flatten(1))


def slot_bytes(latent: Shape, features: Mapping[int, Shape], condition: Condition, dtype: torch.dtype) -> dict[int, int]:
    """Bytes of one slot for schedules that use no branch but this one; a `Slots` takes the largest of its branches."""
    own = 2 * FLOAT32_BYTES * prod(latent) + sum(row[0].numel() * _stored(row, dtype).itemsize for row in condition.tensors)
    return {branch: own + dtype.itemsize * prod(feature) for branch, feature in features.items()}


def _stored(row: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Class numbers stay numbers."""
    return dtype if row.is_floating_point() else row.dtype
