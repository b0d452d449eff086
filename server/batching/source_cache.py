"""Encoded images, kept for the next edit of the same."""

from __future__ import annotations

from cachetools import LRUCache
from torch import Tensor

from server.telemetry import metrics

KEPT_BYTES = 64 * 2**20  # on the device: of Stable Diffusion 1 at 512x512, 1,024 images


class SourceCache:
    """Latents by the content of their images, the least recently used dropped first. For the engine's thread."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._latents = LRUCache[str, Tensor](most, getsizeof=lambda latent: latent.nbytes)

    def get(self, key: str) -> Tensor | None:
        """The latent (c, h, w), if it is kept."""
        latent = self._latents.get(key)
        metrics.source_latents_total.labels("miss" if latent is None else "hit").inc()
        return latent

    def put(self, key: str, latent: Tensor) -> None:
        """Keep it, unless it is larger than all that may be."""
        if latent.nbytes <= self._latents.maxsize:
            self._latents[key] = latent
        metrics.source_cache_bytes.set(self._latents.currsize)

    def forget(self, key: str) -> None:
        """Encode it anew the next time."""
        self._latents.pop(key, None)
        metrics.source_cache_bytes.set(self._latents.currsize)
