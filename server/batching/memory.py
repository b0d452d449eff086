"""How many UNet rows may be in flight: as many as are wanted, or as the memory setting allows."""

from __future__ import annotations

import logging

from engine.model import Model
from engine.slots import Slots
from registry.errors import InvalidInput

log = logging.getLogger(__name__)


def slots_within(model: Model, wanted: int, cache_bytes: int | None) -> Slots:
    """Slots for `wanted` UNet rows, or as many as fit. Raises `InvalidInput` when that is not even one image."""
    capacity = wanted if cache_bytes is None else min(wanted, cache_bytes // model.slot_bytes)
    if capacity < 2:
        message = (
            f"an image with guidance needs {2 * model.slot_bytes / 2**20:.1f} MiB, got {(cache_bytes or 0) / 2**20:.1f} MiB"
        )
        raise InvalidInput(message, param="cache_mib")
    log.info("%d UNet rows fit in flight, %.1f MiB each", capacity, model.slot_bytes / 2**20)
    return model.slots(capacity)
