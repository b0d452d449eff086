"""Images without pixels: what the policy, the shares and admission see of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from engine.program_step import Need
from loadtests.card import FULL, Card, numbered
from registry.schedule import Schedule


@dataclass(frozen=True)
class TierPlan:
    """What an image of a tier runs. macs_before[p]: of the steps before step p; the last entry is the whole image's."""

    tier: str
    needs: tuple[Need, ...]
    macs_before: tuple[int, ...]
    unet_rows: int = 2

    @classmethod
    def of(cls, tier: str, schedule: Schedule, macs: Mapping[int, float], unet_rows: int = 2) -> Self:
        """Of a schedule; macs: of one row, by branch, where a branch that is not there costs what the next larger one does."""
        steps = [step for step in schedule.steps() if step.kind != "null"]
        needs = [Need("full", 0) if step.kind == "full" else Need("partial", step.branch) for step in steps]
        return cls.running(tier, needs, macs, unet_rows)

    @classmethod
    def running(cls, tier: str, needs: Sequence[Need], macs: Mapping[int, float], unet_rows: int = 2) -> Self:
        """Of the steps that it runs; macs: as in `of`."""
        costs = [unet_rows * round(_macs(macs, numbered(need.branch))) for need in needs]
        return cls(tier, tuple(needs), (0, *accumulate(costs)), unet_rows)

    def alone_seconds(self, card: Card) -> float:
        """What an image takes that has the card for itself."""
        calls = (card.call(numbered(need.branch) if need.kind == "partial" else FULL, 1.0) for need in self.needs)
        return sum(call.seconds(self.unet_rows) for call in calls) + card.decoding.seconds(1)


def _macs(macs: Mapping[int, float], branch: int) -> float:
    return macs[min((known for known in macs if known >= branch and known != FULL), default=FULL)] if branch else macs[FULL]


class VirtualImage:
    """A `Candidate` and a `Waiting` without tensors. Times are of the virtual clock, in seconds."""

    __slots__ = ("born", "deadline", "plan", "position", "waits")
    idle = background = False

    def __init__(self, plan: TierPlan, born: float, deadline: float = math.inf) -> None:
        self.plan, self.born, self.deadline = plan, born, deadline
        self.position, self.waits = 0, 0

    @property
    def spec(self) -> VirtualImage:
        """As the queue asks whose class it is."""
        return self

    @property
    def tier(self) -> str:
        """Among which MACs are shared."""
        return self.plan.tier

    @property
    def unet_rows(self) -> int:
        """Of each step."""
        return self.plan.unet_rows

    @property
    def need(self) -> Need:
        """Of its next step."""
        return self.plan.needs[self.position]

    @property
    def ahead(self) -> Sequence[Need]:
        """Of all remaining steps."""
        return self.plan.needs[self.position :]

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.position == len(self.plan.needs)

    @property
    def remaining_macs(self) -> int:
        """Of all remaining steps."""
        return self.plan.macs_before[-1] - self.plan.macs_before[self.position]

    @property
    def next_macs(self) -> int:
        """Of the next step."""
        return self.plan.macs_before[self.position + 1] - self.plan.macs_before[self.position]
