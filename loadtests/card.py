"""What calls to a UNet and a VAE cost on one GPU: measured points, and lines between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from registry.errors import InvalidInput
from registry.schedule import Branch

FULL = 0  # as a branch: of the full step


def numbered(branch: Branch) -> int:
    """A branch of a UNet, which is what cards were measured with. Raises `InvalidInput` for a transformer's."""
    if not isinstance(branch, int):
        raise InvalidInput(f"curves are of UNets, whose branches are numbers, got {branch}", param="branch")
    return branch


@dataclass(frozen=True)
class CallCost:
    """One kind of call. device: milliseconds by the number of rows, measured; host: those that queuing it takes, at any number.

    Between two points lies a line, beyond the last one the line of the last two. Below the first it costs what the first does.
    """

    device: Mapping[int, float]
    host: float = 0.0

    def device_seconds(self, rows: float) -> float:
        """What a call of so many rows takes the device."""
        sizes = sorted(self.device)
        costs = [self.device[size] for size in sizes]
        if rows > sizes[-1] and len(sizes) > 1:
            slope = (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2])
            return (costs[-1] + slope * (rows - sizes[-1])) / 1000
        return float(np.interp(rows, sizes, costs)) / 1000

    @property
    def host_seconds(self) -> float:
        """What it takes the host to queue it."""
        return self.host / 1000

    def seconds(self, rows: float) -> float:
        """What a call takes when nothing else is going on: the longer of the two, for they work at the same time."""
        return max(self.device_seconds(rows), self.host_seconds)

    def scaled(self, share: float) -> CallCost:
        """A kind of call that costs this share of it."""
        return CallCost({rows: share * cost for rows, cost in self.device.items()}, share * self.host)


@dataclass(frozen=True)
class Card:
    """One GPU and how it is driven. calls: by branch, `FULL` for the full step; decoding: the VAE's, rows are images."""

    about: str
    calls: Mapping[int, CallCost]
    decoding: CallCost

    def call(self, branch: int, share: float) -> CallCost:
        """The calls of one branch; where they were not measured, this share of the full step's."""
        return self.calls.get(branch) or self.calls[FULL].scaled(share)
