"""The memory of rows in flight: as much as is wanted, or as the setting allows."""

from __future__ import annotations

import logging

from engine.models import Model
from engine.slots import Slots, slot_bytes
from registry.errors import InvalidInput

log = logging.getLogger(__name__)


def slots_within(model: Model, wanted: int, cache_bytes: int | None) -> Slots:
    """Slots for `wanted` UNet rows, or as many as fit. Raises `InvalidInput` when that is not even one image."""
    each = max(slot_bytes(model.latent_shape, model.macs.features, model.dtype).values())
    capacity = wanted if cache_bytes is None else min(wanted, cache_bytes // each)
    if capacity < 2:
        message = f"an image with guidance needs {2 * each / 2**20:.1f} MiB, got {cache_bytes or 0} bytes"
        raise InvalidInput(message, param="cache_mib")
    log.info("%d UNet rows fit in flight, %.1f MiB each", capacity, each / 2**20)
    return model.slots(capacity)
