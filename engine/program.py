"""A schedule compiled for a solver: the steps that are really computed, each with a few numbers.

Every supported solver is linear in the current latent x, the UNet's output m, the predicted clean latent x₀ and the x₀ of the
step before. With signal α and noise σ (α² + σ² = 1, x = α x₀ + σ ε), one step is

    x₀  = clamp(clean_x · x + clean_m · m, ±clip)      m: epsilon, v or sample prediction
    x′  = next_x · x + next_m · m + next_0 · x₀ + next_1 · x₀_before

so images with different schedules, solvers and positions can share one UNet call. All numbers are float64, computed once. A
schedule's corrections are added to them, one multiplies the guidance scale of the step, one extrapolates its deep feature. A
stochastic solver adds fresh unit noise z to what it comes to, x′ + noise · z: the image's own, of the place where the step
lands (`engine.fresh_noise`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor

from engine.branches import Branches, refuse_branch
from engine.noise import NoiseLevels, Trajectory
from engine.program_step import ProgramStep, corrected
from engine.solvers import clean_of, updates_of
from engine.source import EncodedSource
from registry.corrections import Correction
from registry.errors import InvalidInput, Unsupported
from registry.schedule import Branch, Kind, Schedule

SCALES_KEPT = 64  # of guidance, whose corrected steps a program remembers
SIZES_KEPT = 64  # of images, whose programs a program remembers
STARTS_KEPT = 64  # places of the trajectory, whose programs a program remembers


@dataclass(frozen=True)
class Program:
    """What one image of `schedule` runs, in order, from `start` times unit noise. Null steps are left out: the solver jumps.

    `steps` hold the schedule's corrections where they are the same at all guidance scales; else `at` a scale gives them.
    `signal`: of programs that start from an image, what its latent is multiplied with before the noise is added. `fitted`: for
    each step the number of the computed step whose correction is its own; None where they are all there, one for each.
    """

    schedule: Schedule
    steps: tuple[ProgramStep, ...]
    start: float
    levels: NoiseLevels = field(repr=False, compare=False)
    scale: float | None = None  # whose corrections the steps hold, where they depend on it
    signal: float = 0.0
    fitted: tuple[int | None, ...] | None = None

    def at(self, guidance: float) -> Program:
        """The program of images of this scale; of a program at a scale, that program itself."""
        if self.schedule.scaled_corrections is None or self.scale is not None:
            return self
        return self._scaled(guidance)

    def on(self, levels: NoiseLevels) -> Program:
        """The same schedule, with its corrections, on other noise levels: of one size made for another, before anything else is
        made of it. Raises what compiling does.
        """
        return self if levels is self.levels else self._on(levels)

    def starting(self, strength: float) -> Program:
        """The same for images that start from another one, in the middle: see `first_place`, which raises.

        Its first step lies at that place of the solver's trajectory, where the image is noised to, and is full, as no deep
        feature is there; the others are the schedule's own behind it. They keep their corrections, though these were fitted on
        paths from pure noise: measured, that is better than to do without. Only where the first step is none of the schedule's
        full steps, no correction is its own, and the next full step's deep feature is not extrapolated, as what was reused
        before it is of another place. A multistep solver begins anew.
        """
        return self._started(first_place(self.levels, self.schedule.solver.teacher_steps, strength))

    def begin(self, noise: Tensor, source: EncodedSource | None) -> Tensor:
        """The latents that the first step sees, of unit noise and, where it starts from images, of them."""
        latent = self.start * noise
        return latent if source is None else latent + self.signal * source.latent

    @property
    def counts(self) -> dict[Kind, int]:
        """How many steps of each kind one image takes, null steps included."""
        counts = Counter[Kind](step.kind for step in self.steps)
        null = self.schedule.solver.teacher_steps - self.steps[0].index - len(self.steps)
        return {"full": counts["full"], "partial": counts["partial"], "null": null}

    @cached_property
    def _scaled(self) -> Callable[[float], Program]:
        """`at`, which remembers: clients ask for few scales, and threads may ask together."""

        @lru_cache(SCALES_KEPT)
        def program(guidance: float) -> Program:
            corrections = self.schedule.corrections_at(guidance) or ()
            return replace(self, steps=_corrected(self.steps, corrections, self.fitted), scale=guidance)

        return program

    @cached_property
    def _on(self) -> Callable[[NoiseLevels], Program]:
        """`on`, which remembers: a model makes the levels of a size once."""

        @lru_cache(SIZES_KEPT)
        def program(levels: NoiseLevels) -> Program:
            return _compiled(self.schedule, levels)

        return program

    @cached_property
    def _started(self) -> Callable[[int], Program]:
        """`starting` at a place, which remembers."""

        @lru_cache(STARTS_KEPT)
        def program(place: int) -> Program:
            return _started(self.schedule, self.levels, place)

        return program


def first_place(levels: NoiseLevels, steps: int, strength: float) -> int:
    """The first of the trajectory's steps that an image runs which starts from another one: the last `levels.remaining`
    of them run, as in diffusers; at least one does, where diffusers may raise.

    Raises `InvalidInput` for a strength that is none.
    """
    if not 0 < strength <= 1:
        raise InvalidInput(f"must be above 0 and at most 1, got {strength:g}", param="strength")
    return steps - max(1, levels.remaining(steps, strength))


def compile_program(schedule: Schedule, levels: NoiseLevels, branches: Branches) -> Program:
    """Compile for a model with these noise levels whose network has these branches.

    Raises `InvalidInput` when the network does not have a segment's branch or the solver does not fit the model.
    """
    for i, segment in enumerate(schedule.segments):
        if segment.partial:
            refuse_branch(branches, segment.computes, f"segments.{i}.branch")
    if schedule.solver.clip and not levels.clips:
        raise InvalidInput("the makers of this model bound no clean latents; take it away", param="solver.clip")
    return _compiled(schedule, levels)


def _compiled(schedule: Schedule, levels: NoiseLevels) -> Program:
    """Of a schedule whose branches the network has. Raises `InvalidInput` and `Unsupported` where its path cannot be walked."""
    visited = [step for step in schedule.steps() if step.kind != "null"]
    path = path_of(schedule, levels)
    if (np.diff(path.alphas) <= 0).any():
        raise InvalidInput("the trajectory visits a noise level twice", param="teacher_steps")
    if levels.prediction == "epsilon" and path.alphas[0] == 0:
        raise Unsupported("epsilon says nothing at a level without signal (zero terminal SNR)", param="prediction_type")
    corrections = schedule.corrections or (Correction(),) * len(visited)  # those by scale: `Program.at`
    plain = solved(schedule, levels, path, [(step.index, step.kind, _kept(schedule, step.index)) for step in visited])
    return Program(schedule, _corrected(plain, corrections), path.start, levels)


def _started(schedule: Schedule, levels: NoiseLevels, place: int) -> Program:
    """`Program.starting` at a place."""
    visited = [step for step in schedule.steps() if step.kind != "null"]
    own, fitted = path_of(schedule, levels), list[int | None](range(len(visited)))
    path, computed = own, [(step.index, step.kind, _kept(schedule, step.index)) for step in visited]
    if place:
        begin = levels.trajectory(schedule.solver).at([place])
        later = [i for i, step in enumerate(visited) if step.index > place and own.alphas[i] > begin.alphas[0]]
        same = [i for i, step in enumerate(visited) if (step.index, own.alphas[i]) == (place, begin.alphas[0])]
        first = next((i for i in same if visited[i].kind == "full"), None)
        path, fitted = begin.before(own.at(later)), [first, *later]
        computed = [(place, "full", _kept(schedule, place)), *(computed[i] for i in later)]
    plain = [replace(step, lands=step.lands - place) for step in solved(schedule, levels, path, computed)]
    steps = plain if schedule.corrections is None else _corrected(plain, schedule.corrections, fitted)
    return Program(schedule, tuple(steps), float(path.sigmas[0]), levels, signal=float(path.alphas[0]), fitted=tuple(fitted))


def solved(
    schedule: Schedule, levels: NoiseLevels, path: Trajectory, computed: Sequence[tuple[int, str, Branch]]
) -> list[ProgramStep]:
    """The steps of a path by the schedule's solver, without corrections; computed: place, kind and branch of each point."""
    # In diffusers DDIM and LCM clip as the makers say, DPM-Solver++ where it is asked to, and no other.
    clip = levels.clip if schedule.solver.name in ("ddim", "lcm") or schedule.solver.clip else math.inf
    updates = updates_of(schedule.solver, levels, path)
    points = zip(path.timesteps.tolist(), path.alphas.tolist(), path.sigmas.tolist(), strict=True)
    levels_after = [*zip(path.alphas.tolist()[1:], path.sigmas.tolist()[1:], strict=True), (1.0, 0.0)]
    lands = [*(place for place, _, _ in computed[1:]), schedule.solver.teacher_steps]
    return [
        ProgramStep(
            place,
            kind,  # type: ignore[arg-type]  # null steps are not computed
            branch,
            timestep,
            *clean_of(levels.prediction, *level),
            clip,
            *update[:4],
            noise=update.noise,
            lands=land,
            signal=after[0],
            sigma=after[1],
        )
        for (place, kind, branch), (timestep, *level), update, land, after in zip(
            computed, points, updates, lands, levels_after, strict=True
        )
    ]


def _kept(schedule: Schedule, place: int) -> Branch:
    """The branch of the partial steps of the segment that holds this place; 0 where it has none."""
    segment = schedule.segments[place // schedule.length]
    return segment.computes if segment.partial else 0


def path_of(schedule: Schedule, levels: NoiseLevels) -> Trajectory:
    """The points that the schedule computes: those of its solver's trajectory that are not null, or its own timesteps."""
    whole = levels.trajectory(schedule.solver, schedule.timesteps)
    if schedule.timesteps is not None:
        return whole
    return whole.at([step.index for step in schedule.steps() if step.kind != "null"])


def _corrected(
    steps: Sequence[ProgramStep], corrections: Sequence[Correction], fitted: Sequence[int | None] | None = None
) -> tuple[ProgramStep, ...]:
    """The steps with their corrections: one each, or as `Program.fitted` says."""
    if fitted is None:
        return tuple(corrected(step, by) for step, by in zip(steps, corrections, strict=True))
    own = [Correction() if number is None else corrections[number] for number in fitted]
    full = [i for i, step in enumerate(steps) if step.kind == "full"]
    for i in full[: 1 if fitted[0] is not None else 2]:  # nothing was reused before the first; before the next what it made
        own[i] = own[i].model_copy(update={"extrapolation": 0.0})
    return tuple(corrected(step, by) for step, by in zip(steps, own, strict=True))
