"""What the host knows of a wave before the device runs it, and the arithmetic around the UNet call.

Everything that changes from wave to wave is here, as indices and numbers; everything else is in the slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.condition import Condition
from engine.device import to_device
from engine.program import ProgramStep


class InFlight(Protocol):
    """An image in flight, as far as a table looks at it: a slot and a condition for each of its rows."""

    @property
    def step(self) -> ProgramStep:
        """The next step to run."""

    @property
    def guidance(self) -> float | None:
        """The scale of classifier-free guidance; None without it."""

    @property
    def slots(self) -> Sequence[int]:
        """Of the conditional row, then of the unconditional one."""

    @property
    def conditions(self) -> Sequence[Condition]:
        """One for each row, in the same order."""


TIMESTEP = 0  # column of `WaveTable.solver`


@dataclass(frozen=True)
class WaveTable:
    """Where a wave of n tasks and r UNet rows finds what it works on: indices and numbers only, all on the device.

    Rows are in the order of the tasks: first all conditional ones, then the unconditional ones of the tasks that guide.

    homes (n,): the slot that holds a task's latent.
    slots (r,): a row's own slot, for its deep feature.
    owners (r,): the task that a row belongs to.
    unconditional (n,): the row that guidance moves a task's output away from; without guidance the task's only row.
    solver (n, 9), float32: the numbers of `ProgramStep`, then the guidance scale.
    kept: {branch: rows whose deep feature the partial steps after this full one reuse}.
    condition: of all rows.
    """

    homes: Tensor
    slots: Tensor
    owners: Tensor
    unconditional: Tensor
    solver: Tensor
    kept: Mapping[int, Tensor]
    condition: Condition

    @classmethod
    def of(cls, tasks: Sequence[InFlight], device: torch.device) -> WaveTable:
        """The table of tasks that all need the same kind of step next."""
        rows = [(i, 0) for i in range(len(tasks))] + [(i, 1) for i, task in enumerate(tasks) if task.guidance is not None]
        last = {owner: row for row, (owner, _) in enumerate(rows)}  # the unconditional one, or else the only one
        kept = defaultdict[int, list[int]](list)
        for row, (owner, _) in enumerate(rows):
            if (step := tasks[owner].step).kind == "full" and step.branch:
                kept[step.branch].append(row)
        parts = [
            [task.slots[0] for task in tasks],
            [tasks[owner].slots[half] for owner, half in rows],
            [owner for owner, _ in rows],
            list(last.values()),
            *kept.values(),
        ]
        indices = to_device(torch.tensor([index for part in parts for index in part]), device)  # one copy for all
        homes, slots, owners, unconditional, *kept_rows = indices.split([len(part) for part in parts])
        numbers = [(*task.step.numbers, (task.guidance or 0.0) * task.step.guidance) for task in tasks]
        solver = torch.from_numpy(np.array(numbers, dtype=np.float32))  # torch.tensor is slower
        condition = Condition.cat([tasks[owner].conditions[half] for owner, half in rows])
        branches = dict(zip(kept, kept_rows, strict=True))
        return cls(homes, slots, owners, unconditional, to_device(solver, device), branches, condition)


def guided(output: Tensor, table: WaveTable) -> Tensor:
    """Classifier-free guidance, m = m_∅ + g (m_c − m_∅) (arXiv 2207.12598), in one gather for guided and unguided tasks alike.

    output (r, c, h, w) of the UNet's rows; returns (n, c, h, w), one for each task.
    """
    conditional = output[: len(table.homes)]
    if len(output) == len(conditional):
        return conditional
    unconditional = output[table.unconditional]
    return unconditional + table.solver[:, -1].view(-1, 1, 1, 1) * (conditional - unconditional)


def solve(solver: Tensor, x: Tensor, before: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The two equations of `engine.program`, with one set of numbers for each task. Returns the next x and x₀, (n, c, h, w)."""
    _, clean_x, clean_m, clip, next_x, next_m, next_0, next_1, _ = solver.T[..., None, None, None]
    clean = (clean_x * x).addcmul_(clean_m, m).clamp_(-clip, clip)
    return (next_x * x).addcmul_(next_m, m).addcmul_(next_0, clean).addcmul_(next_1, before), clean
