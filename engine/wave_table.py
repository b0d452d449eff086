"""A wave as indices and numbers: all that changes from wave to wave, one after the other in one buffer.

The host fills the table in before the device runs the wave. Everything larger stays in the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.denoising_task import DenoisingTask
from engine.program_step import Need
from registry.schedule import Branch

SLOT, CONDITIONAL, UNCONDITIONAL, SOURCE = range(4)  # lines of `WaveTable.indices`; those of the kept features follow
# Lines of `WaveTable.numbers`: those of `ProgramStep.numbers` and five more.
TIMESTEP, GUIDANCE, EXTRAPOLATION, SIGNAL, SIGMA, KEEPS = 0, 8, 9, 10, 11, 12
NUMBERS = 13


class WaveShape(NamedTuple):
    """What waves have in common that are the same call to the device, for other slots and numbers. All are of one size.

    rows: of the UNet call, padding included. kept: the branches whose deep feature this full step keeps, in ascending order.
    """

    need: Need
    rows: int
    kept: tuple[Branch, ...] = ()

    @property
    def bytes(self) -> int:
        """Of a table for it."""
        return self.rows * (8 * (SOURCE + 1 + len(self.kept)) + 4 * NUMBERS)


@dataclass(frozen=True)
class WaveTable:
    """One column for each UNet row of the call.

    A row advances the latent of its own slot, so a guided task's latent is there twice, with the same value: what becomes of a
    row follows from its column alone.

    indices (4 + kept, rows), int64: the row's slot; the row that is conditional, and the one that is unconditional, of the same
    task: for a task without guidance both are the row itself; the slot of what its task keeps of a source, the scratch slot
    where that is nothing; for each branch of `kept` the slot that takes its feature.
    numbers (13, rows), float32: those of `ProgramStep.numbers`, then the guidance scale, the extrapolation, signal and noise
    of the level where the step lands, and 1 where something of a source is kept, else 0.
    """

    shape: WaveShape
    indices: Tensor
    numbers: Tensor

    @classmethod
    def within(cls, buffer: Tensor, shape: WaveShape) -> WaveTable:
        """The table of this shape at the beginning of a buffer of bytes (n,), uint8, in its own memory."""
        end = 8 * (SOURCE + 1 + len(shape.kept)) * shape.rows
        indices = buffer[:end].view(torch.int64).view(-1, shape.rows)
        return cls(shape, indices, buffer[end : shape.bytes].view(torch.float32).view(NUMBERS, shape.rows))

    def fill(self, tasks: Sequence[DenoisingTask], scratch: int) -> None:
        """Write the columns of these tasks, which need what the shape says; this table is in the host's memory.

        The columns that are left over are of rows that read and write the slot `scratch` only.
        """
        rows, lines = list[tuple[int, ...]](), list[tuple[float, ...]]()
        for task in tasks:
            first, last, step = len(rows), len(rows) + task.unet_rows - 1, task.step
            source = task.kept_slot if task.kept_slot is not None else scratch
            for slot in task.slots:
                takers = (slot if step.branch == branch else scratch for branch in self.shape.kept)
                rows.append((slot, first, last, source, *takers))
                scale = (task.guidance or 0.0) * step.guidance
                lines.append((*step.numbers, scale, step.extrapolation, step.signal, step.sigma, float(task.masked)))
        for row in range(len(rows), self.shape.rows):
            rows.append((scratch, row, row, scratch, *(scratch for _ in self.shape.kept)))
            lines.append((0.0,) * NUMBERS)
        self.indices.numpy()[:] = np.array(rows).T
        self.numbers.numpy()[:] = np.array(lines, dtype=np.float32).T
