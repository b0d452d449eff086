"""How many UNet rows may be in flight: as many as are wanted, or as the memory setting allows."""

from __future__ import annotations

import logging
from collections.abc import Collection

from engine.image_size import ImageSize
from engine.model import Model
from engine.slots import SlotMemory
from registry.errors import InvalidInput

log = logging.getLogger(__name__)

IMAGE = 2  # rows, with guidance


def slots_within(model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize] = ()) -> SlotMemory:
    """Slots for `wanted` UNet rows of the model's own size, or as many as fit; those of `others` share their memory.

    Where nobody says how much that may be, a quarter as many rows of the largest size fit too. Raises `InvalidInput` where one
    image does not fit.
    """
    slots = model.slots(_capacity(model, wanted, cache_bytes, others), others)
    for size in slots.sizes:
        rows, each, shown = slots.most(size), model.slot_bytes(size) / 2**20, size or model.image_size
        if rows < IMAGE:
            got = (cache_bytes or 0) / 2**20
            message = f"an image of {shown} with guidance takes {IMAGE * each:.1f} MiB, which do not fit into {got:.1f} MiB"
            raise InvalidInput(message, param="cache_mib")
        log.info("%d UNet rows of %s fit in flight, %.1f MiB each", rows, shown, each)
    return slots


def bytes_within(model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize] = ()) -> int:
    """What `slots_within` would allocate. The model needs no weights."""
    own, largest = model.slot_bytes(), max(model.slot_bytes(size) for size in (None, *others))
    return (-(-largest // own) + _capacity(model, wanted, cache_bytes, others)) * own


def _capacity(model: Model, wanted: int, cache_bytes: int | None, others: Collection[ImageSize]) -> int:
    """In slots of the model's own size."""
    own, largest = model.slot_bytes(), max(model.slot_bytes(size) for size in (None, *others))
    most = max(wanted, -(-(wanted // 4 + 1) * largest // own) if others else 0)  # one more: slots of several sizes leave gaps
    return most if cache_bytes is None else min(most, cache_bytes // own)
