"""How many UNet rows may be in flight: as many as are wanted, or as the memory setting allows."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import product

from engine.image_size import ImageSize
from engine.model import Model
from engine.slots import SlotMemory
from registry.errors import InvalidInput

log = logging.getLogger(__name__)

IMAGE = 2  # rows, with guidance


def slots_within(
    model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize] = (), chunks: int = 1
) -> SlotMemory:
    """Slots for `wanted` UNet rows of the model's own size, or as many as fit; those of `others` share their memory, and those
    with contexts of up to `chunks` chunks.

    Where nobody says how much that may be, a quarter as many rows of the largest kind fit too. Raises `InvalidInput` where one
    image does not fit.
    """
    slots = model.slots(_capacity(model, wanted, cache_bytes, others, chunks), others, chunks)
    for size, length in product(slots.sizes, sorted({1, chunks}, reverse=True)):
        rows, each = slots.most(size, length), model.slot_bytes(size, length) / 2**20
        shown = f"{size or model.image_size}" + (f" and prompts of {length} chunks" if length > 1 else "")
        if rows < IMAGE:
            got = (cache_bytes or 0) / 2**20
            message = f"an image of {shown} with guidance takes {IMAGE * each:.1f} MiB, which do not fit into {got:.1f} MiB"
            raise InvalidInput(message, param="cache_mib")
        log.info("%d UNet rows of %s fit in flight, %.1f MiB each", rows, shown, each)
    return slots


def bytes_within(
    model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize] = (), chunks: int = 1
) -> int:
    """What `slots_within` would allocate. The model needs no weights."""
    own, largest = model.slot_bytes(), _largest(model, others, chunks)
    return (-(-largest // own) + _capacity(model, wanted, cache_bytes, others, chunks)) * own


def _capacity(model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize], chunks: int) -> int:
    """In slots of the model's own size."""
    own, several = model.slot_bytes(), others or chunks > 1
    most = wanted
    if several:  # one more: slots of several kinds leave gaps
        most = max(wanted, -(-(wanted // 4 + 1) * _largest(model, others, chunks) // own))
    return most if cache_bytes is None else min(most, cache_bytes // own)


def _largest(model: Model, others: Collection[ImageSize], chunks: int) -> int:
    return max(model.slot_bytes(size, chunks) for size in (None, *others))
