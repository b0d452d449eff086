"""What no scheduler can beat, and what is fair: work that flows like water through calls that are always full.

A call of B rows takes c(B) seconds, for each kind of step its own (`loadtests.card`). B is the limit of rows in a call, or what
all clients together have under way where that is less. An image takes r rows (two with guidance) of every call, so N = B/r
images share one, and an image's device time is

    t = (Σ over its steps c_step(N r) + d(N)) / N        d(N): the VAE's call for N images

* Fluid limit: 1 / (mean t of the images that were really answered) images a second. Only the device's work counts.
* Fair share: processor sharing, as if all n clients always advanced together: an image takes n · t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadtests.card import Card
from loadtests.clients import Tally


@dataclass(frozen=True)
class FluidLimit:
    """The limit for `clients` and calls of at most `max_rows` rows, on one card.

    steps: how many an image of each tier takes, by branch (`card.FULL` for full ones). unet_rows: what it takes of a call.
    """

    card: Card
    clients: int
    max_rows: int
    unet_rows: int
    steps: Mapping[str, Mapping[int, int]]

    @property
    def fills_a_call(self) -> bool:
        """Whether the clients together have as many rows under way as a call may have."""
        return self.clients * self.unet_rows >= self.max_rows

    def image_seconds(self, tier: str) -> float:
        """t: the device time of an image in full calls."""
        images = min(self.clients, self.max_rows // self.unet_rows)
        rows = images * self.unet_rows
        denoising = sum(count * self.card.calls[branch].seconds(rows) for branch, count in self.steps[tier].items())
        return (denoising + self.card.decoding.seconds(images)) / images

    def rate(self, answered: Tally) -> float:
        """Requests per second at the limit, for the tiers in the proportions in which they were answered."""
        seconds = sum(self.image_seconds(tier) * len(latencies) for tier, latencies in answered.latencies.items())
        return answered.requests / seconds if seconds else 0.0

    def fair_seconds(self, tier: str) -> float:
        """A request's time when all clients share the device equally."""
        return self.clients * self.image_seconds(tier)
