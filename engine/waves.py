"""Step-level batching: rows of many requests and schedules in flight, one batched UNet call per tick.

A row's next step is known beforehand (its program says so), so rows can be grouped by what they need: a wave is one UNet
call over rows that all need a full step, or all need a partial step of the same branch, wherever each of them is on its
own trajectory. Which rows, is the policy's choice; how, is here. `sampler.generate` is the plain twin: every row ends as it
would end there, whatever its companions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from traceback import clear_frames

import numpy as np
import torch
from torch import Tensor

from engine.condition import Condition
from engine.device import Fence, to_device, to_host
from engine.policy import FCFS, Policy
from engine.program import Need, Program, ProgramStep
from engine.slots import Slots
from engine.unrolled import UnrolledUNet


@dataclass(eq=False)
class DenoisingTask:
    """One image on its way.

    noise (c, h, w): unit starting noise; `latent` is the result, once done. condition and negative have one UNet row each;
    with a negative, steps take two. `deadline`, in seconds of the policy's clock, and `waits`, the waves that went by without
    this row, are for the policy only. An `idle` row runs only in waves of its like, while no other row is in flight.
    """

    program: Program
    noise: Tensor
    condition: Condition
    guidance: float = 1.0
    negative: Condition | None = None
    deadline: float = math.inf
    position: int = 0
    waits: int = 0
    idle: bool = False
    slots: list[int] = field(default_factory=list)
    latent: Tensor | None = None
    error: Exception | None = None

    @property
    def slots_needed(self) -> int:
        """1, or 2 with guidance."""
        return 1 if self.negative is None else 2

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
        return self.step.need

    @property
    def ahead(self) -> list[Need]:
        """What all its remaining steps need."""
        return [step.need for step in self.program.steps[self.position :]]

    @property
    def unet_rows(self) -> int:
        """How many UNet rows the next step takes."""
        return 1 if self.negative is None else 2


@dataclass(frozen=True)
class Wave:
    """One wave: the kind of step, the UNet rows it took, the rows that advanced and those that failed.

    The done ones and the failed ones have left. The device works from the fence `begin` to the fence `end`; once that is
    passed, `finite` says of each row that this wave `finished` whether its latent is.
    """

    need: Need
    unet_rows: int
    rows: Sequence[DenoisingTask]
    failed: Sequence[DenoisingTask]
    begin: Fence
    end: Fence
    finished: Sequence[DenoisingTask] = ()
    finite: Tensor | None = None

    @property
    def seconds(self) -> float:
        """What it took the device, after the wave has landed."""
        return self.end.since(self.begin)


class Waves:
    """Rows in flight, least recently advanced first. Not thread-safe: one thread owns it."""

    def __init__(self, network: UnrolledUNet, slots: Slots, policy: Policy | None = None) -> None:
        """At most as many rows as `slots` has room for are in flight. The default policy is `FCFS`."""
        self.network, self.slots = network, slots
        self.policy = policy or FCFS()
        self.rows: list[DenoisingTask] = []

    def fits(self, row: DenoisingTask) -> bool:
        """Whether there is memory for this row now."""
        return row.slots_needed <= self.slots.free

    def add(self, row: DenoisingTask) -> None:
        """Take in a row that fits; it may join the next wave."""
        row.slots = self.slots.take(row.slots_needed)
        self.rows.append(row)  # before the device is asked for anything: if that fails, `cancel` gives the memory back
        self.slots.put(row.slots[0], row.program.start * row.noise)

    def cancel(self, row: DenoisingTask) -> None:
        """Drop a row between two launches; the others go on unchanged. A row that has left already is no error."""
        if row in self.rows:
            self.rows.remove(row)
            self._leave(row)

    def tick(self, now: float = 0.0) -> Wave | None:
        """One wave from its forming to its end. None when nothing is in flight."""
        wave = self.launch(now)
        return wave and self.land(wave)

    def launch(self, now: float = 0.0) -> Wave | None:
        """Let the policy form one wave, ask the device for it, advance its rows and let the done ones go.

        A GPU is still at work when this returns, and the next wave may be launched behind it: which steps follow is known
        beforehand, and whatever reads a row's state is asked of the device after what writes it.
        """
        if not self.rows:
            return None
        chosen = self.policy.choose([row for row in self.rows if not row.idle] or self.rows, now)
        need, unet_rows, begin = chosen[0].need, sum(row.unet_rows for row in chosen), self.network.fence()
        failed = self._attempt(chosen)
        finished = [row for row in chosen if row.done and not row.error]
        for row in finished:
            row.latent = self.slots.latent(row.slots[0])
        finite = to_host(_finite([row.latent for row in finished if row.latent is not None])) if finished else None
        waiting = [row for row in self.rows if row not in chosen]
        for row in waiting:
            row.waits += 1
        for row in chosen:
            row.waits = 0
            if row.done or row.error:
                self._leave(row)
        self.rows = waiting + [row for row in chosen if row.slots]
        advanced = [row for row in chosen if row not in failed]
        return Wave(need, unet_rows, advanced, failed, begin, self.network.fence(), finished, finite)

    def land(self, wave: Wave) -> Wave:
        """Wait for a wave's end; finished rows whose latent is not finite are then among the failed ones.

        Raises what the device raises, which may be the fault of any wave launched so far. Waves land in the order of launching.
        """
        wave.end.wait()
        if wave.finite is None or wave.finite.all():
            return wave
        bad = [row for row, finite in zip(wave.finished, wave.finite.tolist(), strict=True) if not finite]
        for row in bad:
            row.error = FloatingPointError("the latent is not finite")
        return replace(wave, rows=[row for row in wave.rows if row not in bad], failed=[*wave.failed, *bad])

    def _attempt(self, rows: Sequence[DenoisingTask]) -> list[DenoisingTask]:
        """Run one wave; if that fails, its halves, so that only the culprits fail, and a wave too large for memory still runs.

        Returns the rows that failed alone, each with its error; their state and all others' is as it should be.
        """
        try:
            self._run(rows)
            return []
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold the memory of the attempt
            if len(rows) == 1:
                rows[0].error = error
                return [rows[0]]
        half = len(rows) // 2
        return self._attempt(rows[:half]) + self._attempt(rows[half:])

    @torch.inference_mode()
    def _run(self, rows: Sequence[DenoisingTask]) -> None:
        """One UNet call: the rows' conditional halves first, then the unconditional ones of those that guide."""
        need, branches = rows[0].need, [row.step.branch for row in rows]
        guiding = [i for i, row in enumerate(rows) if row.unet_rows == 2]
        spread = [*range(len(rows)), *guiding]  # UNet row -> row
        held = [row.slots[0] for row in rows] + [rows[i].slots[1] for i in guiding]  # UNet row -> slot
        homes, slots = self._index(held[: len(rows)]), self._index(held)
        table = np.array(
            [(*row.step.numbers, row.guidance * row.step.guidance) for row in rows], dtype=np.float32
        )  # torch.tensor is slower
        numbers = to_device(torch.from_numpy(table), homes.device)
        latent, before = self.slots.state(homes)
        sample, timesteps = latent, numbers[:, 0]
        if guiding:
            sample, timesteps = (part.index_select(0, self._index(spread)) for part in (sample, timesteps))
        condition = Condition.cat([row.condition for row in rows] + [rows[i].negative for i in guiding])  # type: ignore[misc]

        if need.kind == "full":
            output, kept = self.network.full(sample, timesteps, condition, keep=set(branches) - {0})
        else:
            feature = self.slots.feature(slots, need.branch)
            output, kept = self.network.partial(sample, timesteps, condition, need.branch, feature), {}

        _, clean_x, clean_m, clip, *following, guidance = numbers.T[..., None, None, None]
        bound = clip if np.isfinite(table[:, 3]).any() else None
        latent, clean = _advance(latent, before, _guided(output, guidance, guiding), clean_x, clean_m, bound, *following)
        for branch, features in kept.items():
            chosen = [i for i, row in enumerate(spread) if branches[row] == branch]
            if len(chosen) < len(held):
                features = features.index_select(0, self._index(chosen))
            self.slots.keep(self._index([held[i] for i in chosen]), features)
        self.slots.advance(homes, latent, clean)
        for row in rows:
            row.position += 1

    def _index(self, numbers: list[int]) -> Tensor:
        return to_device(torch.tensor(numbers), self.network.device)

    def _leave(self, row: DenoisingTask) -> None:
        self.slots.give_back(row.slots)
        row.slots = []


def _guided(output: Tensor, guidance: Tensor, guiding: Sequence[int]) -> Tensor:
    """The conditional outputs, moved away from the unconditional ones (which follow them) in the rows that guide."""
    rows = len(guidance)
    if not guiding:
        return output
    conditional, unconditional = output[:rows], output[rows:]
    if len(guiding) == rows:
        return unconditional + guidance * (conditional - unconditional)
    some = to_device(torch.tensor(guiding), output.device)
    return conditional.index_copy(0, some, unconditional + guidance[some] * (conditional[some] - unconditional))


def _finite(latents: Sequence[Tensor]) -> Tensor:
    """Of each, whether all its numbers are."""
    return torch.isfinite(torch.stack(list(latents))).flatten(1).all(dim=1)


def _advance(
    x: Tensor,
    before: Tensor,
    m: Tensor,
    clean_x: Tensor,
    clean_m: Tensor,
    clip: Tensor | None,
    next_x: Tensor,
    next_m: Tensor,
    next_0: Tensor,
    next_1: Tensor,
) -> tuple[Tensor, Tensor]:
    """The two equations of `program`, one set of numbers per row, each (n, 1, 1, 1). Returns the next x and x₀."""
    clean = (clean_x * x).addcmul_(clean_m, m)
    clean = clean if clip is None else clean.clamp_(-clip, clip)
    return (next_x * x).addcmul_(next_m, m).addcmul_(next_0, clean).addcmul_(next_1, before), clean
