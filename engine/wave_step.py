"""The device's part of a wave: gather, UNet, guidance, solver, blending, scatter.

One function of memory that never moves, the slots and a table, and of fixed shape: nothing in it depends on what the numbers
are, so it can be captured once and run again for every wave of the shape (`engine.graphs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.denoiser import Denoiser
from engine.extrapolation import extrapolated
from engine.slots import Slots
from engine.wave_table import (
    CONDITIONAL,
    EXTRAPOLATION,
    GUIDANCE,
    KEEPS,
    SIGMA,
    SIGNAL,
    SLOT,
    SOURCE,
    TIMESTEP,
    UNCONDITIONAL,
    WaveTable,
)
from registry.schedule import Branch


@dataclass(frozen=True)
class WaveStep:
    """All waves of a table's shape: those that the table, in the device's memory, says when it runs."""

    network: Denoiser
    slots: Slots
    table: WaveTable

    @torch.inference_mode()
    def __call__(self) -> None:
        """Advance the table's rows by a step."""
        need, _, kept = self.table.shape
        slot, timesteps = self.table.indices[SLOT], self.table.numbers[TIMESTEP]
        latent, before, condition = self.slots.state(slot)
        if need.kind == "full":
            output, features = self.network.full(latent, timesteps, condition, keep=kept)
        else:
            feature = self.slots.feature(slot, need.branch)
            output, features = self.network.partial(latent, timesteps, condition, need.branch, feature), {}
        latent, clean = self.solve(latent, before, self.guide(output))
        reused = [self.extrapolate(features[branch], slot, branch) for branch in kept]
        for takers, feature in zip(self.table.indices[SOURCE + 1 :], reused, strict=True):
            self.slots.keep(takers, feature)
        self.slots.advance(slot, self.blend(latent), clean)

    def extrapolate(self, feature: Tensor, slot: Tensor, branch: Branch) -> Tensor:
        """What rows will reuse of a full step's feature (rows, …). Rows that keep no such feature ignore it."""
        return extrapolated(feature, self.slots.feature(slot, branch), self.table.numbers[EXTRAPOLATION])

    def blend(self, latent: Tensor) -> Tensor:
        """The next latents (rows, c, h, w), and in them what rows keep of a source, noised to where the step lands."""
        slot, numbers = self.table.indices[SOURCE], self.table.numbers[..., None, None, None]
        source, noise, kept = self.slots.source(slot)
        kept = kept * numbers[KEEPS] > 0.5  # of the scratch slot nothing, whatever padding has left there
        return torch.where(kept, (numbers[SIGNAL] * source).addcmul_(numbers[SIGMA], noise), latent)

    def guide(self, output: Tensor) -> Tensor:
        """Classifier-free guidance, m = m_∅ + g (m_c − m_∅) (arXiv 2207.12598), for guided and unguided rows alike.

        output (rows, c, h, w) of the UNet. A row without guidance is its own m_c and m_∅, whatever g.
        """
        conditional = output.index_select(0, self.table.indices[CONDITIONAL])
        unconditional = output.index_select(0, self.table.indices[UNCONDITIONAL])
        return unconditional + self.table.numbers[GUIDANCE].view(-1, 1, 1, 1) * (conditional - unconditional)

    def solve(self, x: Tensor, before: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The two equations of `engine.program`, a set of numbers for each row. Returns the next x and x₀, (rows, c, h, w)."""
        _, clean_x, clean_m, clip, next_x, next_m, next_0, next_1, *_ = self.table.numbers[..., None, None, None]
        clean = (clean_x * x).addcmul_(clean_m, m).clamp_(-clip, clip)
        return (next_x * x).addcmul_(next_m, m).addcmul_(next_0, clean).addcmul_(next_1, before), clean
