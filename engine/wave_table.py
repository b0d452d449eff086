"""A wave as indices and numbers on the device, and the arithmetic around the UNet call.

The host fills the table in before the device runs the wave: it holds everything that changes from wave to wave. Latents and
features stay in the slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.condition import Condition
from engine.denoising_task import DenoisingTask
from engine.device import to_device

TIMESTEP, CLIP, GUIDANCE = 0, 3, 8  # columns of `WaveTable.solver`


@dataclass(frozen=True)
class WaveTable:
    """Where a wave of n tasks and r UNet rows finds what it works on: indices and numbers only, all on the device.

    Rows are in the order of the tasks: first all conditional ones, then the unconditional ones of the tasks that guide.

    task_slots (n,): the slot that holds a task's latent.
    row_slots (r,): a row's own slot, for its deep feature.
    row_tasks (r,): the task that a row belongs to.
    unconditional (n,): the row that guidance moves a task's output away from; without guidance the task's only row.
    solver (n, 9), float32: the numbers of `ProgramStep`, then the guidance scale.
    kept: {branch: rows whose deep feature the partial steps after this full one reuse}.
    condition: of all rows.
    clips: whether any task's clean latent is bounded at all.
    """

    task_slots: Tensor
    row_slots: Tensor
    row_tasks: Tensor
    unconditional: Tensor
    solver: Tensor
    kept: Mapping[int, Tensor]
    condition: Condition
    clips: bool

    @classmethod
    def of(cls, tasks: Sequence[DenoisingTask], device: torch.device) -> WaveTable:
        """The table of tasks that all need the same kind of step next."""
        guided_tasks = [i for i, task in enumerate(tasks) if task.guidance is not None]
        rows = [(i, 0) for i in range(len(tasks))] + [(i, 1) for i in guided_tasks]  # (task, which of its rows)
        last_rows = {i: row for row, (i, _) in enumerate(rows)}  # the unconditional one, or else the only one
        kept = defaultdict[int, list[int]](list)
        for row, (i, _) in enumerate(rows):
            if (step := tasks[i].step).kind == "full" and step.branch:
                kept[step.branch].append(row)
        parts = [
            [task.slots[0] for task in tasks],
            [tasks[i].slots[half] for i, half in rows],
            [i for i, _ in rows],
            list(last_rows.values()),
            *kept.values(),
        ]
        indices = to_device(torch.tensor([index for part in parts for index in part]), device)  # one copy for all
        task_slots, row_slots, row_tasks, unconditional, *kept_rows = indices.split([len(part) for part in parts])
        lines = [(*task.step.numbers, (task.guidance or 0.0) * task.step.guidance) for task in tasks]
        numbers = np.array(lines, dtype=np.float32)
        return cls(
            task_slots=task_slots,
            row_slots=row_slots,
            row_tasks=row_tasks,
            unconditional=unconditional,
            solver=to_device(torch.from_numpy(numbers), device),  # torch.tensor is slower
            kept=dict(zip(kept, kept_rows, strict=True)),
            condition=Condition.cat([tasks[i].conditions[half] for i, half in rows]),
            clips=bool(np.isfinite(numbers[:, CLIP]).any()),
        )

    def for_rows(self, of_tasks: Tensor) -> Tensor:
        """A value of each task (n, …) for each of its rows (r, …)."""
        return of_tasks if len(self.row_tasks) == len(self.task_slots) else of_tasks.index_select(0, self.row_tasks)

    def only(self, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """These rows (k,) of tensors (r, …): (k, …)."""
        return tensors if len(rows) == len(self.row_tasks) else tuple(tensor.index_select(0, rows) for tensor in tensors)

    def guide(self, output: Tensor) -> Tensor:
        """Classifier-free guidance, m = m_∅ + g (m_c − m_∅) (arXiv 2207.12598), in one gather for guided and unguided tasks.

        output (r, c, h, w) of the UNet's rows; returns (n, c, h, w), one for each task.
        """
        conditional = output[: len(self.task_slots)]
        if len(conditional) == len(output):
            return conditional
        unconditional = output.index_select(0, self.unconditional)
        return unconditional + self.solver[:, GUIDANCE].view(-1, 1, 1, 1) * (conditional - unconditional)

    def solve(self, x: Tensor, before: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The two equations of `engine.program`, a set of numbers for each task. Returns the next x and x₀, (n, c, h, w)."""
        _, clean_x, clean_m, clip, next_x, next_m, next_0, next_1, _ = self.solver.T[..., None, None, None]
        clean = (clean_x * x).addcmul_(clean_m, m)
        if self.clips:
            clean.clamp_(-clip, clip)
        return (next_x * x).addcmul_(next_m, m).addcmul_(next_0, clean).addcmul_(next_1, before), clean
