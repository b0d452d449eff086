"""Programs that begin as one schedule's and end as a cheaper one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.guidance import OFF
from engine.noise import Trajectory
from engine.program import Program, path_of, solved
from engine.program_step import corrected
from registry.corrections import Correction
from registry.errors import Unsupported
from registry.schedule import STOCHASTIC, Branch


def segment_starts(program: Program) -> list[int]:
    """The positions at which a segment begins, 0 among them: where a program may be left for another."""
    return [i for i, step in enumerate(program.steps) if step.kind == "full"]


def rescued(own: Program, position: int, other: Program, fitted: bool = True) -> Program:
    """`own` up to a position at which a segment begins, and from there on what `other` computes. Both at one guidance scale.

    Where both have run the same steps so far, these are the other's own. Else the first is a full step at the present noise
    level, with no correction, as none was fitted there; behind it come those of the other's steps whose level lies below. With
    `fitted` they keep their corrections, but the first two full steps' deep features are not extrapolated, as what was reused
    before them is not what the corrections were fitted with. A multistep solver begins anew. (`Program.starting` does so for
    images that start from another one.) Of the steps only what their images and their MACs follow from is meant.

    Raises `Unsupported` for stochastic solvers: places of two trajectories would share fresh noise.
    """
    for program in (own, other):
        if program.schedule.solver.name in STOCHASTIC:
            raise Unsupported("a stochastic solver's images cannot go on with another schedule", param="solver")
    if not position or (own.steps[:position] == other.steps[:position] and own.start == other.start):
        return other
    path, computed, numbers = _path(own, position, other)
    corrections = other.schedule.corrections_at(OFF if other.scale is None else other.scale) if fitted else None
    suffix = list(solved(other.schedule, other.levels, path, computed))
    if corrections is not None:
        suffix = [corrected(step, by) for step, by in zip(suffix, _kept(computed, numbers, corrections), strict=True)]
    return replace(other, steps=(*own.steps[:position], *suffix), start=own.start, signal=own.signal, fitted=None)


def _path(own: Program, position: int, other: Program) -> tuple[Trajectory, list[tuple[int, str, Branch]], list[int]]:
    """The points of the suffix, each one's place, kind and branch, and the numbers of the other's steps, which are all but the
    first."""
    here = own.steps[position]
    alpha, sigma = own.steps[position - 1].signal, own.steps[position - 1].sigma
    numbers = [i for i in range(1, len(other.steps)) if other.steps[i - 1].signal > alpha]
    steps = [other.steps[i] for i in numbers]
    next_partial = steps[0].branch if steps and steps[0].kind == "partial" else 0
    path = Trajectory(
        timesteps=np.array([here.timestep, *(step.timestep for step in steps)]),
        alphas=np.array([alpha, *(other.steps[i - 1].signal for i in numbers)]),
        sigmas=np.array([sigma, *(other.steps[i - 1].sigma for i in numbers)]),
        end=path_of(other.schedule, other.levels).end,
        start=own.start,
    )
    first: tuple[int, str, Branch] = (here.index, "full", next_partial)
    return path, [first, *((step.index, step.kind, step.branch) for step in steps)], numbers


def _kept(
    computed: Sequence[tuple[int, str, Branch]], numbers: Sequence[int], corrections: Sequence[Correction]
) -> list[Correction]:
    """The correction of each step of the suffix."""
    kept = [Correction(), *(corrections[i] for i in numbers)]
    for i in [i for i, (_, kind, _) in enumerate(computed) if kind == "full"][:2]:
        kept[i] = kept[i].model_copy(update={"extrapolation": 0.0})
    return kept
