"""The memory of UNet rows in flight: preallocated, so that it is bounded, known beforehand, and never moves.

An image holds a slot for each of its UNet rows, one or with classifier-free guidance two, from the moment it joins until it
leaves. A slot holds all that the row needs on the device: its condition, its latent, the clean latent predicted one step
before, and a cached deep feature, of whichever branch the image's current segment reuses: there is room for the largest
branch's feature, and a smaller one uses a part of it.

An image that keeps a part of a source holds one slot more, for that.

Images of several sizes, and with contexts of several lengths, share one piece of memory: a slot takes the bytes of its own size
and length, and where it lies any other may lie once it is free (`engine.room`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.condition import Condition
from engine.image_size import ImageSize
from engine.room import Room
from registry.schedule import Branch

FLOAT32_BYTES = 4
ALIGNED = 64  # bytes: where each part of a slot begins
Shape = tuple[int, ...]
Kind = tuple[ImageSize | None, int]  # of slots: the size of the images, and how many chunks their contexts have


class SlotLayout(NamedTuple):
    """What a row of one size of images holds. latent (c, h, w); `features`: for each branch the shape of the cached feature,
    (c, h, w) of a UNet's, (tokens, width) of a transformer's.
    """

    latent: Shape
    features: Mapping[Branch, Shape]


class SlotMemory:
    """Slots of every size of `layouts`, None being the model's own: room for `capacity` of its slots, or fewer or more others.

    There are slots of each size for contexts of 1 to `chunks` chunks. Slot 0 of each of these kinds is nobody's, the scratch
    slot. Latents are float32; all else has the UNet's `dtype`. Features are laid out as the network makes them: (h, w, c) if it
    runs in `channels_last`, else (c, h, w).
    """

    def __init__(
        self,
        layouts: Mapping[ImageSize | None, SlotLayout],
        condition: Condition,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = False,
        chunks: int = 1,
    ) -> None:
        """`condition`: one row of the kind that the network takes, with a context of one chunk, on any device."""
        self.capacity, self.device, self.chunks = capacity, device, chunks
        self.branches: Sequence[Branch] = list(layouts[None].features)
        conditions = {count: condition.lengthened(count) for count in range(1, chunks + 1)}
        kinds: list[Kind] = [(size, count) for size in layouts for count in conditions]
        self._bytes = {
            (size, count): max(slot_bytes(layouts[size], conditions[count], dtype).values()) for size, count in kinds
        }
        begin, own = max(self._bytes.values()), self._bytes[None, 1]
        end = (-(-begin // own) + capacity) * own
        self._memory = torch.zeros(end, dtype=torch.uint8, device=device)
        self._room = Room(begin, end)
        self._slots = {
            (size, count): Slots(
                _Rows(self._memory, self._bytes[size, count]), layouts[size], conditions[count], dtype, channels_last
            )
            for size, count in kinds
        }

    @property
    def sizes(self) -> list[ImageSize | None]:
        """Those that there are slots of, the largest slots first."""
        return sorted((size for size, count in self._bytes if count == 1), key=lambda size: -self._bytes[size, 1])

    @property
    def bytes(self) -> int:
        """All the memory, held or not."""
        return self._memory.nbytes

    @property
    def free(self) -> int:
        """Slots of the model's own size that could be taken."""
        return self._room.free(self._bytes[None, 1])

    def most(self, size: ImageSize | None, chunks: int = 1) -> int:
        """How many slots of this size and length there are while nothing is held."""
        return Room(max(self._bytes.values()), self._memory.nbytes).free(self._bytes[size, chunks])

    def at(self, size: ImageSize | None = None, chunks: int = 1) -> Slots:
        """The slots of one size, for contexts of so many chunks."""
        return self._slots[size, chunks]

    def take(self, count: int, size: ImageSize | None = None, chunks: int = 1) -> list[int]:
        """Hold `count` slots. There must be as many free ones."""
        slots = self._room.take(self._bytes[size, chunks], count)
        assert slots is not None, f"{count} slots wanted, {self._room.free(self._bytes[size, chunks])} free"
        return slots

    def give_back(self, slots: Sequence[int], size: ImageSize | None = None, chunks: int = 1) -> None:
        """Free these slots."""
        self._room.give_back(self._bytes[size, chunks], slots)

    def trial(self) -> FreeSlots:
        """What is free now, to try out what would fit; nothing is held by it."""
        return FreeSlots(self._room.copy(), self._bytes)


@dataclass(frozen=True)
class FreeSlots:
    """The room as it would be."""

    room: Room
    bytes: Mapping[Kind, int]

    def take(self, count: int, size: ImageSize | None = None, chunks: int = 1) -> bool:
        """Whether so many slots fit; from now on they would be held."""
        return self.room.take(self.bytes[size, chunks], count) is not None

    def give_back(self, slots: Sequence[int], size: ImageSize | None = None, chunks: int = 1) -> None:
        """These would be free."""
        self.room.give_back(self.bytes[size, chunks], slots)


class _Rows:
    """A memory as rows of `size` bytes each, which are handed out part by part."""

    def __init__(self, memory: Tensor, size: int) -> None:
        self._rows = memory[: len(memory) // size * size].view(-1, size)
        self._end = 0

    def part(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next part of each row: (rows, *shape)."""
        begin, size = self._end, prod(shape) * dtype.itemsize
        self._end += _aligned(size)
        return self._rows[:, begin : begin + size].view(dtype).view(len(self._rows), *shape)


class Slots:
    """The slots of one kind: a way to look at the memory that all kinds share."""

    scratch = 0  # nobody's slot; its condition is never written

    def __init__(
        self, rows: _Rows, layout: SlotLayout, condition: Condition, dtype: torch.dtype, channels_last: bool = False
    ) -> None:
        self._shapes, self._channels_last = layout.features, channels_last
        condition = condition.of_latents(*layout.latent[1:])
        self._condition = condition.map(lambda row: rows.part(row.shape[1:], _stored(row, dtype)))
        self._latent = rows.part(layout.latent, torch.float32)
        self._clean = rows.part(layout.latent, torch.float32)
        self._feature = rows.part([max(map(prod, layout.features.values()))], dtype)

    def put(self, slot: int, latent: Tensor, condition: Condition) -> None:
        """Begin a trajectory at this latent (c, h, w) under this condition of one row."""
        self._latent[slot] = latent
        self._clean[slot] = 0
        for memory, row in zip(self._condition.tensors, condition.tensors, strict=True):
            memory[slot] = row[0]

    def keep_source(self, slot: int, latent: Tensor, noise: Tensor, kept: Tensor) -> None:
        """Hold in a slot of its own what an image keeps: the source's latent and the image's first noise (c, h, w), and which
        elements are kept (1, h, w). They lie where other slots have the latent, the clean latent and the feature."""
        self._latent[slot] = latent
        self._clean[slot] = noise
        self._feature[slot, : kept.numel()] = kept.flatten().to(self._feature.dtype)

    def source(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `keep_source` holds: latents and noises (n, c, h, w), and 1 where they are kept, else 0. slots (n,)."""
        latent, noise = self._latent.index_select(0, slots), self._clean.index_select(0, slots)
        height, width = latent.shape[-2:]
        kept = self._feature[:, : height * width].index_select(0, slots).view(-1, 1, height, width)
        return latent, noise, kept

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

    def feature(self, slots: Tensor, branch: Branch) -> Tensor:
        """Cached features (n, …) of one branch."""
        shape = self._shapes[branch]
        stored = self._feature[:, : prod(shape)].index_select(0, slots)
        if not self._channels_last:
            return stored.view(-1, *shape)
        c, h, w = shape
        return stored.view(-1, h, w, c).permute(0, 3, 1, 2)

    def keep(self, slots: Tensor, feature: Tensor) -> None:
        """Cache features (n, …) in these slots."""
        stored = feature.permute(0, 2, 3, 1) if self._channels_last else feature
        self._feature[:, : feature[0].numel()].index_copy_(0, slots, stored.flatten(1))


def slot_bytes(layout: SlotLayout, condition: Condition, dtype: torch.dtype) -> dict[Branch, int]:
    """Bytes of one slot for schedules that use no branch but this one; a `SlotMemory` takes the largest of its branches."""
    own = 2 * _aligned(FLOAT32_BYTES * prod(layout.latent))
    own += sum(
        _aligned(row[0].numel() * _stored(row, dtype).itemsize) for row in condition.of_latents(*layout.latent[1:]).tensors
    )
    return {branch: own + _aligned(dtype.itemsize * prod(shape)) for branch, shape in layout.features.items()}


def _aligned(size: int) -> int:
    """So many bytes, and those up to where the next part begins."""
    return -(-size // ALIGNED) * ALIGNED


def _stored(row: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Class numbers stay numbers."""
    return dtype if row.is_floating_point() else row.dtype
