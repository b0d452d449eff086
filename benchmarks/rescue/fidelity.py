"""How near rescued images are to the teacher's, by where they were rescued and to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.rescue.suffix import rescued, segment_starts
from benchmarks.starts import psnr
from engine import sampler
from engine.condition import Condition
from engine.model import Model
from engine.program import Program, path_of
from engine.program_step import ProgramStep, corrected
from search_jobs.fit import UNetCall, fit
from search_jobs.objective import Sample
from search_jobs.path import TeacherPath, walk


class Switch(NamedTuple):
    """An image of a tier goes on as one of another from a position of its program on."""

    tier: str
    position: int
    to: str


def switches(programs: Mapping[str, Program], macs: Mapping[str, int]) -> list[Switch]:
    """All that there are between programs, to a cheaper one. macs: of whole images."""
    return [
        Switch(tier, position, to)
        for tier, program in programs.items()
        for to in programs
        if macs[to] < macs[tier]
        for position in segment_starts(program)
    ]


@dataclass(frozen=True)
class Images:
    """A sample of images to be made by one program after another, with guidance."""

    model: Model
    sample: Sample
    guidance: float

    @cached_property
    def noise(self) -> Tensor:
        """Unit noise (n, c, h, w)."""
        return torch.stack([self.model.noise(seed) for seed in self.sample.seeds])

    @cached_property
    def conditions(self) -> tuple[Condition, Condition]:
        """Of the prompts, and what is guided away from."""
        return self.model.encode(list(self.sample.prompts)), self.model.negative([""] * len(self.sample.prompts))

    def made(self, program: Program) -> Tensor:
        """(n, 3, H, W) in [0, 1]."""
        return self.model.decode(sampler.generate(self.model.network, program, self.noise, *self.conditions, self.guidance))

    def path(self, teacher: Program) -> TeacherPath:
        """The teacher's."""
        points = path_of(teacher.schedule, self.model.levels)
        return walk(self.model.network, teacher, points, self.noise, *self.conditions, self.guidance)

    @torch.inference_mode()
    def refitted(self, program: Program, position: int, path: TeacherPath) -> Program:
        """The program with corrections from a position on that are fitted on these images, along its own way to the teacher's
        path: the most that anybody could know of a suffix. No feature is extrapolated there."""
        condition = Condition.cat([self.conditions[1], self.conditions[0]])
        latent, before, feature = program.start * self.noise, torch.zeros_like(self.noise), torch.empty(0)
        steps = list[ProgramStep]()
        for i, step in enumerate(program.steps):
            rows = torch.cat([latent, latent])
            timesteps = torch.full((len(rows),), step.timestep)
            if step.kind == "full":
                output, kept = self.model.network.full(rows, timesteps, condition, keep={step.branch})
                made = kept.get(step.branch, feature)
                feature = made + step.extrapolation * (made - feature) if step.extrapolation else made
            else:
                output = self.model.network.partial(rows, timesteps, condition, step.branch, feature)
            unconditional, conditional = output.chunk(2)
            call = UNetCall(latent, before, conditional, unconditional, None)
            if i >= position:
                goal = path.at(step.signal, step.sigma) if i + 1 < len(program.steps) else path.end
                step = corrected(step, fit(step, call, self.guidance, goal))
            steps.append(step)
            latent, before = call.advance(step, self.guidance)
        return replace(program, steps=tuple(steps))


@dataclass(frozen=True)
class SuffixFigures:
    """PSNR to the teacher in dB: of rescued images with the other schedule's corrections, without any behind the switch, and
    with corrections fitted for this very suffix. left: MACs from the switch on, before and after it."""

    kept: float
    bare: float
    refitted: float
    left: tuple[int, int]


class FidelityOfRescues:
    """Of programs at one guidance scale."""

    def __init__(self, images: Images, fitted_on: Images, programs: Mapping[str, Program], teacher: Program) -> None:
        self._images, self._fitted_on, self._programs = images, fitted_on, programs
        self._want = images.made(teacher)
        self._path = fitted_on.path(teacher)
        self.own = {tier: psnr(images.made(program), self._want) for tier, program in programs.items()}

    def lost(self, switch: Switch) -> float:
        """How many dB an image is further from the teacher's than it would have been."""
        return self.own[switch.tier] - psnr(self._images.made(self._rescued(switch)), self._want)

    def measured(self, switch: Switch) -> SuffixFigures:
        """Of a rescue that is not before the first step."""
        program, bare = self._rescued(switch), self._rescued(switch, fitted=False)
        refitted = self._fitted_on.refitted(bare, switch.position, self._path)
        kept, without, refit = (psnr(self._images.made(one), self._want) for one in (program, bare, refitted))
        own = self._programs[switch.tier]
        return SuffixFigures(kept, without, refit, (self._macs(own, switch.position), self._macs(program, switch.position)))

    def _rescued(self, switch: Switch, fitted: bool = True) -> Program:
        return rescued(self._programs[switch.tier], switch.position, self._programs[switch.to], fitted)

    def _macs(self, program: Program, position: int) -> int:
        macs = self._images.model.macs
        return 2 * sum(macs.of(step.kind, step.branch) for step in program.steps[position:])
