"""What no scheduler can beat, and what is fair: work that flows like water through calls that are always full.

A call of B rows takes c(B) = 16 + B ms (`simulated.call_seconds`). B is the limit of rows in a call, or the number of clients
where that is less, for each client has one row under way. A row's step then costs c(B)/B, so an image of s full steps (a
partial step counts as its share of the MACs) costs s·c(B)/B.

* Fluid limit: 1 / (mean s of the images that were really answered · c(B)/B) images a second. Nothing but UNet calls counts.
* Fair share: processor sharing, as if all n clients always advanced together: an image of s steps takes s·n·c(B)/B.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.clients import Tally
from loadtests.simulated import call_seconds


@dataclass(frozen=True)
class FluidLimit:
    """The limit for `clients` and calls of at most `max_rows` rows; `shares`: an image of each tier, in full steps."""

    clients: int
    max_rows: int
    shares: dict[str, float]

    @property
    def row_seconds(self) -> float:
        """Seconds of one row's full step in a full call: c(B)/B."""
        rows = min(self.clients, self.max_rows)
        return call_seconds(rows) / rows

    def rate(self, answered: Tally) -> float:
        """Requests per second at the limit, for the tiers in the proportions in which they were answered."""
        steps = sum(self.shares[tier] * len(latencies) for tier, latencies in answered.latencies.items())
        return answered.requests / (steps * self.row_seconds) if steps else 0.0

    def fair_seconds(self, tier: str) -> float:
        """A request's time when all clients share the device equally."""
        return self.shares[tier] * self.clients * self.row_seconds
