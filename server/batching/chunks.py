"""How many latents are decoded at once: one of a few fixed sizes, and no more than memory holds."""

from __future__ import annotations

import logging

import torch

from engine.compiling import DECODED
from engine.device import lost
from engine.image_size import ImageSize
from engine.model import Model

log = logging.getLogger(__name__)

SHARE = 0.5  # of the memory that is free on the device, which one chunk may take: two are at work at once


class Chunks:
    """The largest size that is known to fit, and what is learnt when it does not. For one thread."""

    def __init__(self, largest: int = DECODED[0]) -> None:
        self.largest = largest

    @classmethod
    def within(cls, image_bytes: int, free_bytes: int) -> Chunks:
        """As large as fits, where decoding one image takes so much; one image is tried in any case."""
        return cls(next((size for size in DECODED if size * image_bytes <= SHARE * free_bytes), 1))

    def size(self, waiting: int) -> int:
        """How many of so many latents, at least one, to decode now."""
        return next(size for size in DECODED if size <= min(waiting, self.largest))

    def exhausted(self, size: int) -> None:
        """So many did not fit: half of them may."""
        if size > 1 and size <= self.largest:
            self.largest = size // 2
            log.warning("%d images at once are too many for the decoder's memory: from now on %d", size, self.largest)


@torch.inference_mode()
def measured(model: Model, size: ImageSize | None = None) -> Chunks:
    """What fits on a GPU of images of a size, tried once in each number, so that nobody waits for that either.

    On a CPU that is the largest number.

    Raises `DeviceLost`.
    """
    if model.device.type != "cuda":
        return Chunks()
    latents = torch.zeros(DECODED[0], *model.latent_shape_at(size), device=model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.decode_again(latents[:1])
    image_bytes = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    chunks = Chunks.within(image_bytes, torch.cuda.mem_get_info(model.device)[0])
    for count in [count for count in DECODED if count <= chunks.largest]:
        try:
            model.decode_later(latents[:count])
            model.network.fence().wait()
        except Exception as error:
            if lost(error):
                raise
            chunks.exhausted(count)
    shown = size or model.image_size
    log.info("the decoder takes %.0f MiB an image of %s, %d at once", image_bytes / 2**20, shown, chunks.largest)
    return chunks
