"""Which rows run next. Names and numbers only, no tensors: a policy can be simulated with a clock of one's own."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engine.curve import CostCurve
from engine.program import Need


class Candidate(Protocol):
    """A row as a policy sees it."""

    @property
    def deadline(self) -> float:
        """Seconds of the caller's clock; infinite for none."""

    @property
    def waits(self) -> int:
        """Waves gone by without it."""

    @property
    def need(self) -> Need:
        """What its next step needs."""

    @property
    def unet_rows(self) -> int:
        """How many UNet rows its next step takes."""

    @property
    def ahead(self) -> Sequence[Need]:
        """What all its remaining steps need, the next one first."""


R = TypeVar("R", bound=Candidate)


class Policy(Protocol):
    """Forms waves. `now` is in seconds of the caller's clock."""

    def choose(self, rows: Sequence[R], now: float) -> Sequence[R]:
        """One or more of the rows, all with the same need. rows: least recently advanced first, at least one."""


@dataclass(frozen=True)
class FCFS:
    """The row that waited longest decides; those that need the same ride along. The plain twin of `Balanced`."""

    max_unet_rows: int = 16

    def choose(self, rows: Sequence[R], now: float) -> Sequence[R]:
        """At most `max_unet_rows` UNet rows, but always at least one row."""
        return fill([row for row in rows if row.need == rows[0].need], self.max_unet_rows)


@dataclass(frozen=True)
class Balanced:
    """Deadlines first, nobody waits for ever, and else the wave that wastes least.

    A wave wastes what its rows cost above their share of a full wave of that kind, in seconds (`CostCurve`): the call's own
    cost, spread over too few rows. So rows wait for companions where that is dear (a GPU), cheap kinds hardly wait, and where
    cost is proportional to rows (a CPU) nothing is wasted and the oldest row decides, as it does when the gain is small
    (below `tolerance` of a full wave) or when `patience` waves went by without it.

    While a row hurries, waves are only as large as its deadline allows, but not so small that the call's own cost would be
    more than `tolerance` of them: a GPU's stay full, a CPU's may shrink to one row.
    """

    curve: CostCurve = field(default_factory=CostCurve)
    max_unet_rows: int = 16
    patience: int = 4
    tolerance: float = 0.1

    def choose(self, rows: Sequence[R], now: float) -> Sequence[R]:
        """At most `max_unet_rows` UNet rows, but always at least one row.

        Rows without a deadline that `patience` waves went by are seated before those in a hurry; after as many again they
        decide of which kind the wave is, too. A row with a deadline needs no such help: it comes to hurry in time, or is lost.
        """
        hurried = sorted((row for row in rows if self.hurries(row, now)), key=lambda row: row.deadline)
        passed = [row for row in rows if row.deadline == math.inf and row.waits >= self.patience]
        forgotten = [row for row in passed if row.waits >= 2 * self.patience]
        stale = max(rows, key=lambda row: row.waits)
        first = [*forgotten, *hurried, *([stale] if stale.waits >= self.patience else [])][:1]
        waves: dict[Need, list[R]] = {}
        for row in dict.fromkeys((*first, *passed, *hurried, *rows)):  # without repeats: everybody, the most urgent first
            waves.setdefault(row.need, []).append(row)
        if first:
            seats = self._seats(first[0], hurried[0], now) if hurried else self.max_unet_rows
            return fill(waves[first[0].need], seats)
        waves = {need: fill(group, self.max_unet_rows) for need, group in waves.items()}
        oldest, best = waves[rows[0].need], min(waves.values(), key=self._waste)
        gain = self._waste(oldest) - self._waste(best)
        return best if gain > self.tolerance * self._full(oldest[0].need) else oldest

    def hurries(self, row: Candidate, now: float, margin: float = 2.0) -> bool:
        """Whether the deadline can still be met, in the smallest waves, but not in `margin` times what full ones take."""
        if row.deadline == math.inf:
            return False
        left, steps = row.deadline - now, Counter(row.ahead)
        return self._least(steps, row.unet_rows) <= left < margin * self._takes(steps, self.max_unet_rows)

    def _seats(self, first: Candidate, urgent: Candidate, now: float) -> int:
        """How large the wave of `first` may be for `urgent` to make it: in it and in waves as large, or after it."""
        left, steps = urgent.deadline - now, Counter(urgent.ahead)
        if first.need != urgent.need:
            left, steps = left - self._least(steps, urgent.unet_rows), Counter([first.need])
        least = max(first.unet_rows, self._enough(first.need))
        return least + bisect(range(least + 1, self.max_unet_rows + 1), left, key=lambda rows: self._takes(steps, rows))

    def _takes(self, steps: Mapping[Need, int], rows: int) -> float:
        """So many steps of each kind, in waves of so many UNet rows."""
        return sum(count * self.curve.seconds(need, rows) for need, count in steps.items())

    def _least(self, steps: Mapping[Need, int], rows: int) -> float:
        """The same in the smallest waves that are formed for a deadline, of so many rows or more."""
        return sum(count * self.curve.seconds(need, max(rows, self._enough(need))) for need, count in steps.items())

    def _enough(self, need: Need) -> int:
        return self.curve.enough(need, self.tolerance, self.max_unet_rows)

    def _full(self, need: Need) -> float:
        return self.curve.seconds(need, self.max_unet_rows)

    def _waste(self, wave: Sequence[Candidate]) -> float:
        need, rows = wave[0].need, sum(row.unet_rows for row in wave)
        return self.curve.seconds(need, rows) - rows * self._full(need) / self.max_unet_rows


def fill(rows: Sequence[R], room: int) -> list[R]:
    """The first of these rows, and those after it that fit into `room` UNet rows."""
    chosen: list[R] = []
    for row in rows:
        if row.unet_rows <= room or not chosen:
            chosen.append(row)
            room -= row.unet_rows
    return chosen
