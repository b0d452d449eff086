"""Runs many schedules over one fixed set of images, and computes what they have in common once.

Schedules of one search are relatives: they begin alike. A UNet call is known by everything that led to it (the numbers of
the steps before, its kind, its timestep), so its outcome is kept under that key, and the next schedule that begins the same
way takes it from there. `sampler.generate` is the plain twin: the same latents, from the corrected schedule alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.condition import Condition
from engine.models import Model
from engine.program import ProgramStep, corrected, path_of
from registry.schedule import Schedule
from search_jobs.fit import Outcome, fit
from search_jobs.path import TeacherPath

Key = tuple[object, ...]


@dataclass
class Spent:
    """MACs of UNet calls that ran, and of those that were known already; guidance rows included."""

    run: int = 0
    shared: int = 0


class Rollout:
    """noise (n, c, h, w), one condition per image; with a `negative` every UNet call has 2n rows.

    Corrections are fitted to `path`. Outcomes are kept up to `memory` bytes, the least recently used leave first.
    """

    def __init__(
        self,
        model: Model,
        noise: Tensor,
        condition: Condition,
        negative: Condition | None,
        guidance: float,
        path: TeacherPath | None = None,
        memory: int = 0,
    ) -> None:
        self.model, self.noise, self.guidance, self.path, self.memory = model, noise, guidance, path, memory
        self.double = negative is not None
        self.condition = Condition.cat([negative, condition]) if negative is not None else condition
        self.spent = Spent()
        self._kept: OrderedDict[Key, Outcome] = OrderedDict()
        self._bytes = 0

    @torch.inference_mode()
    def run(self, schedule: Schedule, fitting: bool = False) -> tuple[Schedule, Tensor]:
        """The schedule, as it is or with corrections fitted here, and its latents (n, c, h, w)."""
        program, levels = self.model.compile(schedule), path_of(schedule, self.model.levels)
        ahead = [*zip(levels.alphas[1:].tolist(), levels.sigmas[1:].tolist(), strict=True), None]
        latent, before, feature = program.start * self.noise, torch.zeros_like(self.noise), None
        past: Key = (program.start,)
        corrections = []
        for step, level in zip(program.steps, ahead, strict=True):
            found = self._call(past, step, latent, before, feature)
            numbers = step
            if fitting:
                assert self.path is not None, "corrections are fitted to a path"
                goal = self.path.end if level is None else self.path.at(*level)
                corrections.append(fit(step, found, self.guidance, goal))
                numbers = corrected(step, corrections[-1])
            latent, before = found.advance(numbers, self.guidance)
            feature = found.feature
            past = (past, step.need, step.branch, *numbers.numbers, numbers.guidance)
        return schedule.model_copy(update={"corrections": tuple(corrections)}) if fitting else schedule, latent

    def _call(self, past: Key, step: ProgramStep, latent: Tensor, before: Tensor, feature: Tensor | None) -> Outcome:
        """The outcome of one UNet call: remembered, or computed now."""
        key = (past, step.need, step.branch, step.timestep)
        macs = self.model.macs.of(step.kind, step.branch) * len(latent) * (1 + self.double)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self.spent.shared += macs
            return found
        self.spent.run += macs
        rows = torch.cat([latent, latent]) if self.double else latent
        timesteps = torch.full((len(rows),), step.timestep, device=rows.device)
        if step.kind == "full":
            output, kept = self.model.network.full(rows, timesteps, self.condition, keep={step.branch})
            feature = kept.get(step.branch)
        else:
            assert feature is not None, "a partial step follows a full one that kept its feature"
            output = self.model.network.partial(rows, timesteps, self.condition, step.branch, feature)
        unconditional, conditional = output.chunk(2) if self.double else (None, output)
        found = Outcome(latent, before, conditional, unconditional, feature)
        self._keep(key, found)
        return found

    def _keep(self, key: Key, found: Outcome) -> None:
        self._kept[key] = found
        self._bytes += found.nbytes
        while self._bytes > self.memory and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
