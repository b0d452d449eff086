"""Runs many schedules over one fixed set of images, and computes the prefixes that they have in common once.

Schedules of one search are relatives: they begin alike. As a language model server caches prefixes of prompts, so this sampler
caches prefixes of schedules: a UNet call is known by everything that led to it (the numbers of the steps before, its kind, its
timestep), so it is kept under that key, and the next schedule that begins the same way takes it from there.

Schedules that run together are a tree of such calls, walked from the root: of all calls that can be made now, those of one
need, whichever most wait for, are one call of the UNet. So the images of a whole generation fill a GPU, and what schedules that
run together share takes no memory at all.
`engine.sampler.generate` is the plain twin: the same latents, from the corrected schedule alone.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.condition import Condition
from engine.device import to_device
from engine.fresh_noise import Fresh
from engine.model import Model
from engine.program import path_of
from engine.program_step import Need, ProgramStep, corrected
from engine.slots import FLOAT32_BYTES
from registry.schedule import Schedule
from search_jobs.fit import UNetCall, fit, fit_extrapolation
from search_jobs.path import TeacherPath
from search_jobs.pieces import UNetInPieces
from search_jobs.schedule_walk import Key, MacsSpent, ScheduleWalk

TRIAL = 0.5  # the weight of an extrapolation that shows how outputs change with the feature


class Sampled(NamedTuple):
    """A schedule that was run: with its corrections if they were fitted, its latents (n, c, h, w), and what they took."""

    schedule: Schedule
    latents: Tensor
    spent: MacsSpent


class PrefixCachingSampler:
    """Samples n images from noise (n, c, h, w), one condition per image; with a `negative` every schedule takes 2n UNet rows.

    Corrections are fitted to `path`; if `extrapolating`, with extrapolations of deep features, each of which takes up to two
    more calls of a partial step. UNet calls are kept up to `memory` bytes; the least recently used leave first.
    """

    def __init__(
        self,
        model: Model,
        unet: UNetInPieces,
        noise: Tensor,
        condition: Condition,
        negative: Condition | None,
        guidance: float,
        path: TeacherPath | None = None,
        memory: int = 0,
        extrapolating: bool = False,
        fresh: Fresh | None = None,
    ) -> None:
        """unet: the model's. fresh: the images' noises (n, c, h, w) by place, for schedules of stochastic solvers."""
        self.fresh = fresh
        self.model, self.unet, self.noise, self.guidance, self.path, self.memory = model, unet, noise, guidance, path, memory
        self.extrapolating = extrapolating
        self.macs = model.macs_at(model.size_of(noise))
        self.double = negative is not None
        self.condition = Condition.cat([negative, condition]) if negative is not None else condition
        self._cache: OrderedDict[Key, UNetCall] = OrderedDict()
        self._bytes = 0

    @property
    def rows(self) -> int:
        """UNet rows that one schedule takes."""
        return len(self.noise) * (1 + self.double)

    @property
    def bytes_each(self) -> int:
        """The most bytes that a schedule holds while it runs: three features, and about six latents an image."""
        features = max(map(prod, self.macs.features.values())) * self.model.dtype.itemsize
        return 3 * self.rows * features + 6 * self.noise.numel() * FLOAT32_BYTES

    @torch.inference_mode()
    def run(self, schedules: Sequence[Schedule], fitting: bool = False) -> list[Sampled]:
        """Run the schedules together, each as it is or with corrections fitted here."""
        walks = [self._begin(schedule) for schedule in schedules]
        while waiting := _most_wanted(walks):
            for key, call in self._calls(waiting).items():
                for walk in waiting[key]:
                    self._advance(walk, call, fitting)
        fitted = [{"corrections": tuple(walk.corrections)} if fitting else {} for walk in walks]
        return [
            Sampled(walk.schedule.model_copy(update=update), walk.latent, walk.spent)
            for walk, update in zip(walks, fitted, strict=True)
        ]

    def _begin(self, schedule: Schedule) -> ScheduleWalk:
        program = self.model.compile(schedule, self.model.size_of(self.noise)).at(self.guidance)
        levels = path_of(schedule, program.levels)
        ahead = [*zip(levels.alphas[1:].tolist(), levels.sigmas[1:].tolist(), strict=True), None]
        latent = program.start * self.noise
        return ScheduleWalk(schedule, program.steps, ahead, latent, torch.zeros_like(latent), (program.start,))

    def _advance(self, walk: ScheduleWalk, call: UNetCall, fitting: bool) -> None:
        step, level = walk.step, walk.levels[walk.position]
        numbers, noise = step, self._noise(step)
        if fitting:
            assert self.path is not None, "corrections are fitted to a path"
            goal = self.path.end if level is None else self.path.at(*level)
            if self.extrapolating and walk.may_extrapolate:
                best = self._extrapolate(walk, call, goal - noise)
                if best is None:
                    return  # the call is made once more, on another feature
                call = best
            walk.corrections.append(fit(step, call, self.guidance, goal - noise))
            numbers = corrected(step, walk.corrections[-1])
        walk.latent, walk.before = call.advance(numbers, self.guidance)
        if step.noise:
            walk.latent = walk.latent + noise
        if call.feature is not None:
            walk.begin_reusing(call.feature, numbers.extrapolation)
        landed = (step.noise, step.lands) if step.noise else ()
        walk.past = (walk.past, step.need, step.branch, *numbers.numbers, numbers.guidance, walk.extrapolation, *landed)
        walk.position += 1

    def _noise(self, step: ProgramStep) -> Tensor | float:
        """What a stochastic solver adds after the step."""
        if not step.noise:
            return 0.0
        assert self.fresh is not None, "a stochastic solver takes fresh noise"
        return step.noise * self.fresh(step.lands)

    def _extrapolate(self, walk: ScheduleWalk, call: UNetCall, goal: Tensor) -> UNetCall | None:
        """Find what the next partial steps reuse, over up to three calls of the first of them.

        The first is on the full step's own feature, the second extrapolates it with a trial weight, the third with the best.
        Returns the call with the best; None if that takes one more.
        """
        walk.trials.append(call)
        if len(walk.trials) == 1:
            walk.reuse(TRIAL)
            return None
        if len(walk.trials) == 2:
            plain, tried = walk.trials
            walk.reuse(fit_extrapolation(walk.step, plain, tried, TRIAL, self.guidance, goal))
            if walk.extrapolation:
                return None
            call = plain
        walk.trials.clear()
        walk.corrections[-1] = walk.corrections[-1].model_copy(update={"extrapolation": walk.extrapolation})
        return call

    def _calls(self, waiting: Mapping[Key, Sequence[ScheduleWalk]]) -> dict[Key, UNetCall]:
        """UNet calls of one need by key: from the cache, or computed now."""
        calls = {key: call for key in waiting if (call := self._cache.get(key)) is not None}
        missing = {key: walks for key, walks in waiting.items() if key not in calls}
        for key in calls:
            self._cache.move_to_end(key)
        for key, walks in waiting.items():
            macs = self.macs.of(walks[0].step.kind, walks[0].step.branch) * self.rows
            first, *others = walks
            for walk in others:
                walk.spent.shared += macs
            if key in missing:
                first.spent.run += macs
            else:
                first.spent.shared += macs
        if missing:
            computed = dict(zip(missing, self._compute([walks[0] for walks in missing.values()]), strict=True))
            for key, call in computed.items():
                self._keep(key, call)
            calls |= computed
        return calls

    def _compute(self, walks: Sequence[ScheduleWalk]) -> list[UNetCall]:
        """The next UNet calls of these walks, all of one need, as one call."""
        first, rows = walks[0].step, self.rows
        sample = torch.cat([walk.latent for walk in walks for _ in range(1 + self.double)])
        timesteps = to_device(torch.tensor([walk.step.timestep for walk in walks]), sample.device).repeat_interleave(rows)
        condition = self.condition if len(walks) == 1 else Condition.cat([self.condition] * len(walks))
        features: list[Tensor | None] = [None] * len(walks)
        if first.kind == "full":
            output, kept = self.unet.full(sample, timesteps, condition, keep={walk.step.branch for walk in walks})
            whole = [kept.get(walk.step.branch) for walk in walks]
            features = [None if feature is None else _own(feature, i, rows) for i, feature in enumerate(whole)]
        else:
            reused = torch.cat([walk.feature for walk in walks if walk.feature is not None])
            assert len(reused) == len(sample), "a partial step follows a full one that kept its feature"
            output = self.unet.partial(sample, timesteps, condition, first.branch, reused)
        calls = []
        for i, (walk, feature) in enumerate(zip(walks, features, strict=True)):
            own = _own(output, i, rows)
            unconditional, conditional = own.chunk(2) if self.double else (None, own)
            calls.append(UNetCall(walk.latent, walk.before, conditional, unconditional, feature))
        return calls

    def _keep(self, key: Key, call: UNetCall) -> None:
        self._cache[key] = call
        self._bytes += call.nbytes
        while self._bytes > self.memory and self._cache:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes


def _most_wanted(walks: Sequence[ScheduleWalk]) -> Mapping[Key, Sequence[ScheduleWalk]]:
    """Of all next UNet calls those of the need with the most of them, each with the walks that share it; none at the end."""
    waiting = defaultdict[Need, defaultdict[Key, list[ScheduleWalk]]](lambda: defaultdict(list))
    for walk in walks:
        if not walk.done:
            waiting[walk.step.need][walk.key].append(walk)
    return max(waiting.values(), key=len, default={})


def _own(rows: Tensor, i: int, count: int) -> Tensor:
    """The rows of the i-th of several parts of `count`: a copy, so that no part holds the memory of the others."""
    return rows if len(rows) == count else rows[i * count : (i + 1) * count].clone()
