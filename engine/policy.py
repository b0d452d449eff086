"""Which rows run next. Names and numbers only, no tensors: a policy can be simulated with a clock of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
class Oldest:
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
    """

    curve: CostCurve = field(default_factory=CostCurve)
    max_unet_rows: int = 16
    patience: int = 4
    tolerance: float = 0.1

    def choose(self, rows: Sequence[R], now: float) -> Sequence[R]:
        """At most `max_unet_rows` UNet rows, but always at least one row; those in a hurry are seated first."""
        hurried = sorted((row for row in rows if self.hurries(row, now)), key=lambda row: row.deadline)
        stale = max(rows, key=lambda row: row.waits)
        first = hurried[:1] or ([stale] if stale.waits >= self.patience else [])
        waves: dict[Need, list[R]] = {}
        for row in dict.fromkeys((*first, *hurried, *rows)):  # without repeats: everybody, the most urgent first
            waves.setdefault(row.need, []).append(row)
        waves = {need: fill(group, self.max_unet_rows) for need, group in waves.items()}
        if first:
            return waves[first[0].need]
        oldest, best = waves[rows[0].need], min(waves.values(), key=self._waste)
        gain = self._waste(oldest) - self._waste(best)
        return best if gain > self.tolerance * self._full(oldest[0].need) else oldest

    def hurries(self, row: Candidate, now: float, margin: float = 2.0) -> bool:
        """Whether the deadline can still be met, but not if the row takes `margin` times what its steps do in full waves."""
        if row.deadline == math.inf:
            return False
        remaining = sum(self._full(need) for need in row.ahead)
        return row.deadline - margin * remaining < now <= row.deadline - remaining

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
