"""The memory of UNet rows in flight: preallocated, so that it is bounded, known beforehand, and never fragments.

An image holds a slot for each of its UNet rows, one or with classifier-free guidance two, from the moment it joins until it
leaves. A slot has room for a latent, the clean latent predicted one step before, and a cached deep feature: of whichever branch
the image's current segment reuses, so there is room for the largest branch's feature, and a smaller one uses a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

FLOAT32_BYTES = 4
Shape = tuple[int, int, int]


class Slots:
    """`capacity` slots. Latents are float32; cached features have the UNet's `dtype`."""

    def __init__(
        self, latent: Shape, features: Mapping[int, Shape], capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`latent` (c, h, w); `features`: the cached feature's (c, h, w) for each branch that schedules may use."""
        self.capacity = capacity
        self._shapes = features
        self._latent = torch.zeros(capacity, *latent, device=device)
        self._clean = torch.zeros_like(self._latent)
        self._feature = torch.zeros(capacity, max(map(prod, features.values())), device=device, dtype=dtype)
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    @property
    def bytes(self) -> int:
        """All the memory, held or not."""
        return sum(memory.nbytes for memory in (self._latent, self._clean, self._feature))

    def take(self, count: int) -> list[int]:
        """Hold `count` slots. There must be as many free ones."""
        assert count <= self.free, f"{count} slots wanted, {self.free} free"
        return [self._free.pop() for _ in range(count)]

    def give_back(self, slots: Sequence[int]) -> None:
        """Free these slots."""
        self._free.extend(slots)

    def put(self, slot: int, latent: Tensor) -> None:
        """Begin a trajectory at this latent (c, h, w)."""
        self._latent[slot] = latent
        self._clean[slot] = 0

    def latent(self, slot: int) -> Tensor:
        """A copy of one latent (c, h, w)."""
        return self._latent[slot].clone()

    def clean(self, slot: int) -> Tensor:
        """A copy of the clean latent (c, h, w) that the last step predicted."""
        return self._clean[slot].clone()

    def state(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and the clean latents before them, (n, c, h, w) each. slots (n,)."""
        return self._latent.index_select(0, slots), self._clean.index_select(0, slots)

    def advance(self, slots: Tensor, latent: Tensor, clean: Tensor) -> None:
        """Store what `state` will read next."""
        self._latent.index_copy_(0, slots, latent)
        self._clean.index_copy_(0, slots, clean)

    def feature(self, slots: Tensor, branch: int) -> Tensor:
        """Cached features (n, c, h, w) of one branch."""
        shape = self._shapes[branch]
        return self._feature[:, : prod(shape)].index_select(0, slots).view(-1, *shape)

    def keep(self, slots: Tensor, feature: Tensor) -> None:
        """Cache features (n, c, h, w) in these slots."""
        self._feature[:, : feature[0].numel()].index_copy_(0, slots, feature.flatten(1))


def slot_bytes(latent: Shape, features: Mapping[int, Shape], dtype: torch.dtype) -> dict[int, int]:
    """Bytes of one slot for schedules that use no branch but this one; a `Slots` takes the largest of its branches."""
    return {branch: 2 * FLOAT32_BYTES * prod(latent) + dtype.itemsize * prod(feature) for branch, feature in features.items()}
