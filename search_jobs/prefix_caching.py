"""Runs many schedules over one fixed set of images, and computes the prefixes that they have in common once.

Schedules of one search are relatives: they begin alike. As a language model server caches prefixes of prompts, so this sampler
caches prefixes of schedules: a UNet call is known by everything that led to it (the numbers of the steps before, its kind, its
timestep), so it is kept under that key, and the next schedule that begins the same way takes it from there.
`engine.sampler.generate` is the plain twin: the same latents, from the corrected schedule alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.condition import Condition
from engine.model import Model
from engine.program import ProgramStep, corrected, path_of
from registry.schedule import Schedule
from search_jobs.fit import UNetCall, fit
from search_jobs.path import TeacherPath

Key = tuple[object, ...]


@dataclass
class MacsSpent:
    """MACs of UNet calls: `run` of those computed, `shared` of those found in the cache; guidance rows included."""

    run: int = 0
    shared: int = 0


class PrefixCachingSampler:
    """Samples n images from noise (n, c, h, w), one condition per image; with a `negative` every UNet call has 2n rows.

    Corrections are fitted to `path`. UNet calls are kept up to `memory` bytes; the least recently used leave first.
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
        self.spent = MacsSpent()
        self._cache: OrderedDict[Key, UNetCall] = OrderedDict()
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
            call = self._call(past, step, latent, before, feature)
            numbers = step
            if fitting:
                assert self.path is not None, "corrections are fitted to a path"
                goal = self.path.end if level is None else self.path.at(*level)
                corrections.append(fit(step, call, self.guidance, goal))
                numbers = corrected(step, corrections[-1])
            latent, before = call.advance(numbers, self.guidance)
            feature = call.feature
            past = (past, step.need, step.branch, *numbers.numbers, numbers.guidance)
        return schedule.model_copy(update={"corrections": tuple(corrections)}) if fitting else schedule, latent

    def _call(self, past: Key, step: ProgramStep, latent: Tensor, before: Tensor, feature: Tensor | None) -> UNetCall:
        """One UNet call: from the cache, or computed now."""
        key = (past, step.need, step.branch, step.timestep)
        macs = self.model.macs.of(step.kind, step.branch) * len(latent) * (1 + self.double)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            self.spent.shared += macs
            return cached
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
        call = UNetCall(latent, before, conditional, unconditional, feature)
        self._keep(key, call)
        return call

    def _keep(self, key: Key, call: UNetCall) -> None:
        self._cache[key] = call
        self._bytes += call.nbytes
        while self._bytes > self.memory and self._cache:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
