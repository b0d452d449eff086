"""Who of those that wait comes in when there is room: deadlines that can be met, then the tier that had least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engine.policy import Balanced, Candidate

MARGIN = 4.0  # times its own steps: when a deadline counts as near, seen from outside. 2 missed more in simulation, 8 no fewer


class Waiting(Candidate, Protocol):
    """A row that is not in flight yet, of some tier."""

    @property
    def tier(self) -> str:
        """The tier among which MACs are shared."""


W = TypeVar("W", bound=Waiting)


@dataclass
class Door:
    """Shares MACs between the tiers that have rows waiting: a flood of one tier delays its own rows, not the other tiers'.

    Each tier's account is charged the MACs of what it sends in. A tier that was away starts again at the smallest account of
    those present, so nobody saves up (start-time fair queuing, Goyal et al., SIGCOMM 1996).
    """

    policy: Balanced
    accounts: dict[str, float] = field(default_factory=dict)
    _present: set[str] = field(default_factory=set)

    def next(self, waiting: Sequence[W], now: float) -> W:
        """Who comes in next. waiting: in order of arrival, at least one."""
        hurried = [row for row in waiting if self.policy.hurries(row, now, MARGIN)]
        if hurried:
            return min(hurried, key=lambda row: row.deadline)
        tiers = {row.tier for row in waiting}
        floor = min((self.accounts[tier] for tier in tiers & self._present), default=0.0)
        for tier in tiers - self._present:
            self.accounts[tier] = max(self.accounts.get(tier, 0.0), floor)
        self._present = tiers
        return min(waiting, key=lambda row: self.accounts[row.tier])  # of equals, the first: in order of arrival

    def charge(self, tier: str, macs: int) -> None:
        """This tier sent in so much work."""
        self.accounts[tier] = self.accounts.get(tier, 0.0) + macs
