"""Who of those that wait comes in when there is room: deadlines that can be met, on credit, else the tier that had least."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from engine.policy import Balanced, Candidate

MARGIN = 4.0  # times its own steps: when a deadline counts as near, seen from outside. 2 missed more in simulation, 8 no fewer


class Waiting(Candidate, Protocol):
    """A task that is not in flight yet, of some tier."""

    @property
    def tier(self) -> str:
        """The tier among which MACs are shared."""


W = TypeVar("W", bound=Waiting)


class Choice(NamedTuple, Generic[W]):
    """Who comes in next, and whether it overtakes others of its tier."""

    task: W
    overtakes: bool


@dataclass
class TierShares:
    """Shares MACs between the tiers that have tasks waiting: a flood of one tier delays its own tasks, not the other tiers'.

    Each tier's account is charged the MACs of what it sends in. A tier that was away starts again at the smallest account of
    those present, so nobody saves up (start-time fair queuing, Goyal et al., SIGCOMM 1996). A deadline goes first on credit:
    while its tier's account is no more than an image, of the dearest tier present, above the smallest. Within its tier it
    overtakes every other time, else deadlines would keep out who has none.
    """

    policy: Balanced
    accounts: dict[str, float] = field(default_factory=dict)
    _present: set[str] = field(default_factory=set)
    _newest: dict[str, int] = field(default_factory=dict)  # tier -> MACs of the last image that it sent in
    _overtook: dict[str, bool] = field(default_factory=dict)  # tier -> whether that one overtook others

    def next(self, waiting: Sequence[W], now: float) -> Choice[W]:
        """Who comes in next; nothing is charged yet. waiting: in order of arrival, at least one."""
        heads: dict[str, W] = {}  # the first of each tier, in order of arrival
        bound: list[W] = []  # who has a deadline
        for task in waiting:
            heads.setdefault(task.tier, task)
            if task.deadline < inf:
                bound.append(task)
        self._greet(heads.keys())
        least = min(heads.values(), key=lambda task: self.accounts[task.tier])  # of equals, the first
        credit = self.accounts[least.tier] + max(self._newest.get(tier, 0) for tier in heads)

        def may_hurry(task: W) -> bool:
            in_turn = task is heads[task.tier] or not self._overtook.get(task.tier)
            return self.accounts[task.tier] <= credit and in_turn and self.policy.hurries(task, now, MARGIN)

        chosen = min(filter(may_hurry, bound), key=lambda task: task.deadline, default=least)
        return Choice(chosen, overtakes=chosen is not heads[chosen.tier])

    def charge(self, choice: Choice[W], macs: int) -> None:
        """Charge its tier for the chosen task, which came in with so much work."""
        tier = choice.task.tier
        self.accounts[tier] += macs
        self._newest[tier] = macs
        self._overtook[tier] = choice.overtakes

    def give_back(self, task: Waiting, macs: int) -> None:
        """It was charged for so much, and does not come in after all."""
        self.accounts[task.tier] -= macs

    def _greet(self, tiers: Collection[str]) -> None:
        """Tiers that were away start at the smallest account of those that were not."""
        floor = min((self.accounts[tier] for tier in tiers if tier in self._present), default=0.0)
        for tier in tiers:
            if tier not in self._present:
                self.accounts[tier] = max(self.accounts.get(tier, 0.0), floor)
        self._present = set(tiers)
