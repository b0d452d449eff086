"""How a pipeline of flow matching has its scheduler make the levels, as data that needs no torch."""

from __future__ import annotations

from typing import NamedTuple


class Walked(NamedTuple):
    """What a pipeline hands to its scheduler.

    evenly: levels from 1 down to 1/N before they are shifted, N being the number of steps; else the scheduler takes them
    between the ends of the training levels. by_size: how large the image is, without which none can shift dynamically.
    """

    evenly: bool = False
    by_size: bool = False


PLAINLY = Walked()
