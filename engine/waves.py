"""Step-level batching: rows of many requests and schedules in flight, one batched UNet call per tick.

A row's next step is known beforehand (its program says so), so rows can be grouped by what they need: a wave is one UNet
call over rows that all need a full step, or all need a partial step of the same branch, wherever each of them is on its
own trajectory. `sampler.generate` is the plain twin: every row ends as it would end there, whatever its companions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from engine.anatomy import Anatomy
from engine.program import Program, ProgramStep


class Need(NamedTuple):
    """What a wave runs: ("full", 0) or ("partial", branch). Rows with equal needs share a UNet call."""

    kind: str
    branch: int


@dataclass(eq=False)
class Row:
    """One latent in flight.

    latent (c, h, w): the starting noise at first, the result at the end. context (r, tokens, dim): r = 1, or r = 2 with
    classifier-free guidance, the negative prompt first; the row then counts as two UNet rows.
    """

    program: Program
    latent: Tensor
    context: Tensor
    guidance: float = 1.0
    position: int = 0
    clean: Tensor = field(init=False, repr=False)
    feature: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.clean = torch.zeros_like(self.latent)
        self.feature = self.latent.new_empty(0)

    @property
    def unet_rows(self) -> int:
        """1, or 2 with guidance."""
        return len(self.context)

    @property
    def done(self) -> bool:
        """Whether every step of the program has run."""
        return self.position == len(self.program.steps)

    @property
    def step(self) -> ProgramStep:
        """The next step to run."""
        return self.program.steps[self.position]

    @property
    def need(self) -> Need:
        """The kind of wave the next step can join."""
        return Need("full", 0) if self.step.kind == "full" else Need("partial", self.step.branch)


@dataclass(frozen=True)
class Wave:
    """One UNet call that ran: what it was, and its rows (those that are done have left the engine)."""

    need: Need
    rows: Sequence[Row]

    @property
    def unet_rows(self) -> int:
        """The batch size the UNet saw."""
        return sum(row.unet_rows for row in self.rows)


class Waves:
    """Rows in flight, least recently advanced first. Not thread-safe: one thread owns it."""

    def __init__(self, anatomy: Anatomy, max_unet_rows: int = 16) -> None:
        """At most `max_unet_rows` UNet rows go into one wave, but always at least one row."""
        self.anatomy = anatomy
        self.max_unet_rows = max_unet_rows
        self.rows: list[Row] = []
        self.last: Wave | None = None  # the wave that ran last, or failed: then its rows are still here, unchanged

    def add(self, row: Row) -> None:
        """Take a row in; it joins the next wave that it can."""
        self.rows.append(row)

    def cancel(self, row: Row) -> None:
        """Drop a row between two ticks; the others go on unchanged. A row that has left already is no error."""
        self.rows = [other for other in self.rows if other is not row]

    def tick(self) -> Wave | None:
        """Form one wave, run it, advance its rows and let the done ones go. None when nothing is in flight."""
        if not self.rows:
            return None
        wave = self.last = self._form()
        self._run(wave)
        waiting = [row for row in self.rows if row not in wave.rows]
        self.rows = waiting + [row for row in wave.rows if not row.done]
        return wave

    def _form(self) -> Wave:
        """The row that waited longest chooses the kind, so no row starves; those that need the same ride along."""
        need, room, chosen = self.rows[0].need, self.max_unet_rows, list[Row]()
        for row in self.rows:
            if row.need == need and (row.unet_rows <= room or not chosen):
                chosen.append(row)
                room -= row.unet_rows
        return Wave(need, chosen)

    @torch.inference_mode()
    def _run(self, wave: Wave) -> None:
        rows, repeats = wave.rows, torch.tensor([row.unet_rows for row in wave.rows])
        device = rows[0].latent.device
        latent = torch.stack([row.latent for row in rows])
        spread = torch.arange(len(rows)).repeat_interleave(repeats).to(device)
        sample = latent[spread]
        timesteps = torch.tensor([row.step.timestep for row in rows]).to(device)[spread]
        context = torch.cat([row.context for row in rows])
        ends = repeats.cumsum(0)

        if wave.need.kind == "full":
            output, kept = self.anatomy.full(sample, timesteps, context, keep={row.step.branch for row in rows})
            for row, start, end in zip(rows, (ends - repeats).tolist(), ends.tolist(), strict=True):
                if row.step.branch:
                    row.feature = kept[row.step.branch][start:end].clone()  # a view would keep the whole wave's alive
        else:
            features = torch.cat([row.feature for row in rows])
            output = self.anatomy.partial(sample, timesteps, context, wave.need.branch, features)

        conditional, unconditional = output[(ends - 1).to(device)], output[(ends - repeats).to(device)]
        guidance = _column([row.guidance for row in rows], latent)
        self._advance(rows, latent, unconditional + guidance * (conditional - unconditional))

    def _advance(self, rows: Sequence[Row], latent: Tensor, output: Tensor) -> None:
        """The two equations of `program`, one set of numbers per row."""
        steps = [row.step for row in rows]
        before = torch.stack([row.clean for row in rows])
        clean = _column([s.clean_x for s in steps], latent) * latent + _column([s.clean_m for s in steps], latent) * output
        latent = _column([s.next_x for s in steps], latent) * latent + _column([s.next_0 for s in steps], latent) * clean
        latent = latent + _column([s.next_1 for s in steps], latent) * before
        for i, row in enumerate(rows):
            row.latent, row.clean, row.position = latent[i], clean[i], row.position + 1


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """One number per row, (n, 1, 1, 1), to multiply (n, c, h, w)."""
    return torch.tensor(numbers, dtype=like.dtype).to(like.device).view(-1, 1, 1, 1)
