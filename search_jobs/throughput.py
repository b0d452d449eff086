"""How fast a job measures: images and MACs a second, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Throughput:
    """What was evaluated in this process's time. An image counts from its noise to its features.

    images, macs: what was made, and the UNet's MACs that were run for it, guidance rows included. seconds: by the clock.
    """

    images: int = 0
    macs: int = 0
    seconds: float = 0.0

    def add(self, images: int, macs: int, seconds: float) -> None:
        """So much more was done, in so many seconds."""
        self.images += images
        self.macs += macs
        self.seconds += seconds

    def document(self) -> dict[str, Any]:
        """The figures as a JSON object; there must have been something to do."""
        return {
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 3),
            "macs_per_second": round(self.macs / self.seconds),
        }
