"""When a request would be done, if it came now: what `tier=auto` chooses by and what every answer says it was promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class InflightImage(Protocol):
    """An image in flight, as the forecast sees it."""

    def next_macs(self, steps: int) -> int:
        """MACs of its next so many steps, and of whoever comes in its place."""


@dataclass(frozen=True)
class EngineLoad:
    """What the engine has before it. `waiting`: MACs of the images not in flight yet, by tier.

    seconds_per_mac: the measured pace under load. seconds_per_image: text and VAE, measured too.
    """

    waiting: Mapping[str, int]
    inflight: Sequence[InflightImage]
    seconds_per_mac: float
    seconds_per_image: float

    def finish(self, tier: str, steps: int, macs: int, images: int, alone: float) -> float:
        """Seconds until `images` of `steps` steps each, together `macs`, would be done.

        Two bounds, and the larger one counts. `alone`: its own steps one after another in waves of its own. Shared: its own
        MACs, those of its tier that wait before it, as much again of every other tier that waits (`TierShares` gives every
        tier the same), and of each image in flight the steps that run while its own do: an image advances about once whenever
        another does, and clients that come later take the places of those that leave. Without them, promises under a steady
        load were half of what it took.
        """
        own = self.waiting.get(tier, 0) + macs
        others = sum(min(queued, own) for other, queued in self.waiting.items() if other != tier)
        beside = sum(image.next_macs(steps) for image in self.inflight)
        shared = (own + others + beside) * self.seconds_per_mac
        return max(alone, shared) + images * self.seconds_per_image
