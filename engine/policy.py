"""Which tasks run next. Names and numbers only, no tensors: a policy can be simulated with a clock of one's own."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol, TypeVar

from typing_extensions import override

from engine.curve import CostCurve
from engine.program_step import Need


class Candidate(Protocol):
    """A task (one image in flight) as a policy sees it."""

    @property
    def deadline(self) -> float:
        """Seconds of the caller's clock; infinite for none."""

    @property
    def waits(self) -> int:
        """Waves gone by without it."""

    @property
    def need(self) -> Need:
        """The kind of wave that its next step can join."""

    @property
    def unet_rows(self) -> int:
        """How many UNet rows its next step takes."""

    @property
    def ahead(self) -> Sequence[Need]:
        """What all its remaining steps need, the next one first."""


T = TypeVar("T", bound=Candidate)


class Policy(Protocol):
    """Forms waves. `now` is in seconds of the caller's clock."""

    def choose(self, tasks: Sequence[T], now: float) -> Sequence[T]:
        """One or more of the tasks, all with the same need. tasks: least recently advanced first, at least one."""


@dataclass(frozen=True)
class FCFS(Policy):
    """The task that waited longest decides; those that need the same ride along. The plain twin of `Balanced`."""

    max_unet_rows: int = 16

    @override
    def choose(self, tasks: Sequence[T], now: float) -> Sequence[T]:
        """At most `max_unet_rows` UNet rows, but always at least one task."""
        return fill([task for task in tasks if task.need == tasks[0].need], self.max_unet_rows)


@dataclass(frozen=True)
class Balanced(Policy):
    """Deadlines first, nobody waits for ever, and else the wave that wastes least.

    A task is *hurried* while its deadline can be met, but only just (`hurries`); *overdue* when it has no deadline and
    `patience` waves went by without it; *forgotten* when twice as many did. A task with a deadline needs no such help: it
    comes to hurry in time, or is lost.

    The *leader* decides of which kind the wave is: the first forgotten task, else the most urgent hurried one, else whichever
    task was passed over longest, if `patience` waves went by without it. The wave is filled with tasks of the leader's kind:
    the leader, the overdue, the hurried (most urgent first), and then the others.

    Without a leader the wave that wastes least runs. A wave wastes what its UNet rows cost above their share of a full wave of
    that kind, in seconds (`CostCurve`): the call's own cost, spread over too few rows. So tasks wait for companions where that
    is dear (a GPU), cheap kinds hardly wait, and where cost is proportional to rows (a CPU) nothing is wasted and the oldest
    task decides, as it does when the gain is small (at most `tolerance` of a full wave).

    While a task hurries, waves are only as large as its deadline allows, but not so small that the call's own cost would be
    more than `tolerance` of them: a GPU's stay full, a CPU's may shrink to one row.

    Where calls come in fixed sizes (the curve's `buckets`), a wave that would be padded leaves its last tasks for another one
    if each row of the others is then cheaper; never the leader, the overdue or the hurried.
    """

    curve: CostCurve = field(default_factory=CostCurve)
    max_unet_rows: int = 16
    patience: int = 4
    tolerance: float = 0.1

    @override
    def choose(self, tasks: Sequence[T], now: float) -> Sequence[T]:
        """At most `max_unet_rows` UNet rows, but always at least one task."""
        hurried = sorted((task for task in tasks if self.hurries(task, now)), key=lambda task: task.deadline)
        overdue = [task for task in tasks if task.deadline == math.inf and task.waits >= self.patience]
        leader = self._leader(tasks, hurried, overdue)
        if leader is None:
            return self._least_wasteful(tasks)
        room = self._room(leader, hurried[0], now) if hurried else self.max_unet_rows
        first = dict.fromkeys((leader, *overdue, *hurried))
        in_order = dict.fromkeys((*first, *tasks))  # each task once
        wave = fill([task for task in in_order if task.need == leader.need], room)
        return self._fitted(wave, sum(task in first for task in wave))

    def _leader(self, tasks: Sequence[T], hurried: Sequence[T], overdue: Sequence[T]) -> T | None:
        """Who decides of which kind the wave is, if anybody may."""
        for task in overdue:
            if task.waits >= 2 * self.patience:  # forgotten
                return task
        if hurried:
            return hurried[0]
        longest_passed_over = max(tasks, key=lambda task: task.waits)
        return longest_passed_over if longest_passed_over.waits >= self.patience else None

    def _least_wasteful(self, tasks: Sequence[T]) -> Sequence[T]:
        """The wave of the oldest task, unless one of another kind wastes so much less that it is worth the wait."""
        by_need: dict[Need, list[T]] = {}
        for task in tasks:
            by_need.setdefault(task.need, []).append(task)
        waves = {need: self._fitted(fill(group, self.max_unet_rows)) for need, group in by_need.items()}
        oldest, thriftiest = waves[tasks[0].need], min(waves.values(), key=self._waste)
        gain = self._waste(oldest) - self._waste(thriftiest)
        return thriftiest if gain > self.tolerance * self._full(tasks[0].need) else oldest

    def _fitted(self, wave: list[T], least: int = 1) -> list[T]:
        """As many of the wave's first tasks, at least `least`, as make a row cheapest; all of them where nothing is padded."""
        rows = list(accumulate(task.unet_rows for task in wave))
        if self.curve.buckets.padded(rows[-1]) == rows[-1]:
            return wave
        need = wave[0].need
        count = min(
            range(len(wave), least - 1, -1), key=lambda count: self.curve.seconds(need, rows[count - 1]) / rows[count - 1]
        )
        return wave[:count]

    def hurries(self, task: Candidate, now: float, margin: float = 2.0) -> bool:
        """Whether the deadline can still be met, in the smallest waves, but not in `margin` times what full ones take."""
        if task.deadline == math.inf:
            return False
        left, steps = task.deadline - now, Counter(task.ahead)
        return self._least_seconds(steps, task.unet_rows) <= left < margin * self._seconds(steps, self.max_unet_rows)

    def _room(self, leader: Candidate, urgent: Candidate, now: float) -> int:
        """How many UNet rows the leader's wave may have for `urgent` to meet its deadline.

        If both need the same, `urgent` rides in this wave and goes on in waves as large; else it goes on after this wave, in
        the smallest ones.
        """
        left, steps = urgent.deadline - now, Counter(urgent.ahead)
        if leader.need != urgent.need:
            left, steps = left - self._least_seconds(steps, urgent.unet_rows), Counter([leader.need])
        least = max(leader.unet_rows, self._enough(leader.need))
        return least + bisect(range(least + 1, self.max_unet_rows + 1), left, key=lambda rows: self._seconds(steps, rows))

    def _seconds(self, steps: Mapping[Need, int], rows: int) -> float:
        """What these steps (how many of each kind) take in waves of `rows` UNet rows."""
        return sum(count * self.curve.seconds(need, rows) for need, count in steps.items())

    def _least_seconds(self, steps: Mapping[Need, int], rows: int) -> float:
        """What these steps take in the smallest waves that are formed for a deadline, of `rows` UNet rows or more."""
        return sum(count * self.curve.seconds(need, max(rows, self._enough(need))) for need, count in steps.items())

    def _enough(self, need: Need) -> int:
        """UNet rows from which on the call's own cost is at most `tolerance` of a wave of this kind."""
        return self.curve.enough(need, self.tolerance, self.max_unet_rows)

    def _full(self, need: Need) -> float:
        """Seconds of a full wave of this kind."""
        return self.curve.seconds(need, self.max_unet_rows)

    def _waste(self, wave: Sequence[Candidate]) -> float:
        """Seconds that the wave takes beyond its rows' share of a full one."""
        need, rows = wave[0].need, sum(task.unet_rows for task in wave)
        return self.curve.seconds(need, rows) - rows * self._full(need) / self.max_unet_rows


def fill(tasks: Sequence[T], room: int) -> list[T]:
    """The first of these tasks, and those after it that fit into `room` UNet rows."""
    chosen: list[T] = []
    for task in tasks:
        if task.unet_rows <= room or not chosen:
            chosen.append(task)
            room -= task.unet_rows
    return chosen
