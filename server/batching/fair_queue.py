"""Who of those that wait comes in when there is room: deadlines that can be met, on credit, else the tier that had least."""

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
class FairQueue:
    """Shares MACs between the tiers that have rows waiting: a flood of one tier delays its own rows, not the other tiers'.

    Each tier's account is charged the MACs of what it sends in. A tier that was away starts again at the smallest account of
    those present, so nobody saves up (start-time fair queuing, Goyal et al., SIGCOMM 1996). A deadline goes first on credit:
    while its tier's account is no more than an image, of the dearest tier present, above the smallest. Within its tier it
    overtakes every other time, else deadlines would keep out who has none.
    """

    policy: Balanced
    accounts: dict[str, float] = field(default_factory=dict)
    _present: set[str] = field(default_factory=set)
    _newest: dict[str, int] = field(default_factory=dict)  # tier -> MACs of the last image that it sent in
    _overtook: set[str] = field(default_factory=set)  # tiers whose last image did
    _overtakes: bool = False  # whether the next one does

    def next(self, waiting: Sequence[W], now: float) -> W:
        """Who comes in next. waiting: in order of arrival, at least one."""
        heads: dict[str, W] = {}  # the first of each tier, in order of arrival
        for row in waiting:
            heads.setdefault(row.tier, row)
        self._greet(set(heads))
        least = min(heads.values(), key=lambda row: self.accounts[row.tier])  # of equals, the first
        limit = self.accounts[least.tier] + max(self._newest.get(tier, 0) for tier in heads)
        allowed = [
            row
            for row in waiting
            if self.accounts[row.tier] <= limit
            and (row is heads[row.tier] or row.tier not in self._overtook)
            and self.policy.hurries(row, now, MARGIN)
        ]
        chosen = min(allowed, key=lambda row: row.deadline) if allowed else least
        self._overtakes = chosen is not heads[chosen.tier]
        return chosen

    def charge(self, tier: str, macs: int) -> None:
        """This tier sent in so much work: who was `next`."""
        self.accounts[tier] = self.accounts.get(tier, 0.0) + macs
        self._newest[tier] = macs
        (self._overtook.add if self._overtakes else self._overtook.discard)(tier)

    def _greet(self, tiers: set[str]) -> None:
        floor = min((self.accounts[tier] for tier in tiers & self._present), default=0.0)
        for tier in tiers - self._present:
            self.accounts[tier] = max(self.accounts.get(tier, 0.0), floor)
        self._present = tiers
