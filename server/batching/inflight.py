"""A wave on the device, and what is to be told of it when it has landed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.device import Fence
from engine.waves import Row, Wave
from server.batching.image import Ticket


@dataclass(frozen=True)
class Launched:
    """A launched wave. `images`, and `previews` of unfinished images with their numbers, are pixels (3, height, width).

    They are there once `end` is passed.
    """

    wave: Wave
    tickets: dict[Row, Ticket]
    macs: int
    images: dict[Ticket, Tensor]
    previews: dict[Ticket, tuple[int, Tensor]]
    decoded: Fence  # behind the images
    end: Fence  # behind everything

    def still_here(self) -> list[Ticket]:
        """Those whose row is not given up, or begun anew, since the launch."""
        return [ticket for row, ticket in self.tickets.items() if ticket.row is row and not ticket.left]
