"""The space that is searched: what may vary in a schedule, and how to vary it. Every genome is a valid schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from engine.branches import Branches, all_branches
from engine.noise import NoiseLevels
from engine.program import path_of
from registry.schedule import MAX_TEACHER_STEPS, ModelRef, Schedule, Segment, Solver, SolverName
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.branch_moves import first, mover

LATE = (-0.25, 0.0, 0.5, 1.0)  # what late steps count where timesteps are chosen at once: no model says which is best
RECHOSEN = 0.5  # how often that is done where there are more steps than before, or fewer


class Genome(NamedTuple):
    """The genes: the solver, per segment the offsets of its partial steps and their branch, and the timesteps of all computed
    steps, None for the solver's own."""

    solver: SolverName
    segments: tuple[Segment, ...]
    timesteps: tuple[int, ...] | None = None

    @property
    def computed(self) -> int:
        """How many steps are computed, in full or in part."""
        return sum(1 + len(segment.partial) for segment in self.segments)


@dataclass(frozen=True)
class Space:
    """All schedules of one model with about `teacher_steps` steps.

    The number of segments n is a gene as well. A segment has round(teacher_steps / n) steps, so a trajectory has
    n · round(teacher_steps / n): exactly `teacher_steps` where n divides it, otherwise the nearest multiple. `segments` bounds
    the number that mutation goes to, `max_partial` what it adds to a segment; a genome that starts with more (a baseline of
    many steps, uniform DeepCache) keeps them and can lose them.
    `retime`: whether timesteps move off the solver's own grid. `best`: what chooses them all at once, where the teacher's path
    is known. `offsets`: free, or the paper's literal form, in which partial steps lie directly after the full one (arXiv
    2409.17566).
    """

    model: ModelRef
    levels: NoiseLevels
    branches: Branches
    teacher_steps: int = 50
    solvers: tuple[SolverName, ...] = ("ddim", "dpmsolver++")
    segments: tuple[int, int] = (2, 24)
    max_partial: int = 3
    retime: bool = True
    best: BestTimesteps | None = None
    offsets: Literal["free", "paper"] = "free"

    def length(self, count: int) -> int:
        """Steps in each of `count` segments."""
        return max(1, min(round(self.teacher_steps / count), MAX_TEACHER_STEPS // count))

    def schedule(self, genome: Genome) -> Schedule:
        """The schedule that these genes make."""
        steps = len(genome.segments) * self.length(len(genome.segments))
        clip = self.levels.clips and genome.solver == "dpmsolver++"  # which fails on pixels without
        spacing = self.levels.walks[genome.solver].spacing
        solver = Solver(name=genome.solver, teacher_steps=steps, spacing=spacing, clip=clip)
        return Schedule(model=self.model, solver=solver, segments=genome.segments, timesteps=genome.timesteps)

    def timesteps(self, genome: Genome) -> tuple[int, ...]:
        """The timesteps of a genome's computed steps, whether they are genes or the solver's own."""
        if genome.timesteps is not None:
            return genome.timesteps
        return tuple(round(timestep) for timestep in path_of(self.schedule(genome), self.levels).timesteps.tolist())

    def size(self) -> int:
        """How many genomes lie within the bounds of mutation, timesteps of their own not counted.

        Σ_n solvers · (1 + branches · Σ_k C(L_n − 1, k))^n, of so many branches and with L_n = `length(n)`.
        """
        total = 0
        for count in range(self.segments[0], self.segments[1] + 1):
            inner = self.length(count) - 1
            offsets = sum(comb(inner, k) for k in range(1, min(self.max_partial, inner) + 1))
            total += len(self.solvers) * (1 + len(all_branches(self.branches)) * offsets) ** count
        return total

    def mutate(self, genome: Genome, rng: Random) -> Genome:
        """A neighbour: one or two small changes, mostly to where partial steps lie and how deep they go.

        Gives `genome` back only when tries to change it keep failing, as in a space of one point.
        """
        for _ in range(100):
            child = genome
            for _ in range(rng.choice((1, 1, 2))):
                change = rng.choices(list(MOVES), list(MOVES.values()))[0]
                if self.retime or change not in TIME_MOVES:
                    child = self._in_form(change(self, child, rng))
            if child.computed != genome.computed and rng.random() < RECHOSEN:
                child = self._best_time(child, rng)
            if child != genome:
                return child
        return genome

    def retimed(self, genome: Genome, late: float) -> Genome:
        """The genome at the best timesteps for as many steps; as it is, where none are known. late: see `BestTimesteps`."""
        chosen = self.best and self.best.chosen(genome.computed, late)
        timesteps = chosen and self._descending(chosen)
        return genome._replace(timesteps=timesteps) if timesteps else genome

    def adopt(self, schedule: Schedule) -> Genome | None:
        """The genes of a schedule of any number of steps: same steps at the same timesteps, if the space can hold them.

        A solver that the space does not have becomes its first. None where it cannot hold them: more partial steps than a
        segment of ours has room for.
        """
        length, segments = self.length(len(schedule.segments)), []
        for segment in schedule.segments:
            offsets = tuple(
                sorted({round(offset * length / schedule.length) for offset in segment.partial} & set(range(1, length)))
            )
            if len(offsets) < len(segment.partial):
                return None
            segments.append(segment.model_copy(update={"partial": offsets}))
        grid = path_of(schedule, self.levels).timesteps
        timesteps = self._descending([round(timestep) for timestep in grid.tolist()]) if self.retime else None
        solver = schedule.solver.name if schedule.solver.name in self.solvers else self.solvers[0]
        return self._in_form(Genome(solver, tuple(segments), timesteps))

    def _descending(self, timesteps: Sequence[int]) -> tuple[int, ...] | None:
        """The timesteps, moved apart by one where they meet, down or at the end up; None where there is no room for so many."""
        apart: list[int] = []
        for timestep in timesteps:
            apart.append(min(timestep, apart[-1] - 1) if apart else timestep)
        least = range(self.levels.first_timestep + len(apart) - 1, self.levels.first_timestep - 1, -1)
        apart = [max(pair) for pair in zip(apart, least, strict=True)]
        return tuple(apart) if apart[0] <= self.levels.last_timestep else None

    def _in_form(self, genome: Genome) -> Genome:
        """The genome, with its partial steps directly after the full ones if the space has the paper's form."""
        if self.offsets == "free":
            return genome
        pieces = (s.model_copy(update={"partial": tuple(range(1, len(s.partial) + 1))}) for s in genome.segments)
        return genome._replace(segments=tuple(pieces))

    def crossover(self, first: Genome, second: Genome, rng: Random) -> Genome:
        """Early segments of one parent, late ones of the other; `second` is resampled to the segment count of `first`."""
        second = self._resample(second, len(first.segments))
        cut = rng.randrange(len(first.segments))
        segments = first.segments[:cut] + second.segments[cut:]
        if first.timesteps is None and second.timesteps is None:
            return Genome(first.solver, segments)
        head, tail = (sum(1 + len(s.partial) for s in parent.segments[:cut]) for parent in (first, second))
        timesteps = self.timesteps(first)[:head] + self.timesteps(second)[tail:]
        return Genome(first.solver, segments, self._descending(timesteps))

    def _move_partial(self, genome: Genome, rng: Random) -> Genome:
        """Add, drop or shift a partial step in one segment, or change the segment's branch. A shift with no room is a drop."""
        length = self.length(len(genome.segments))
        at = rng.randrange(len(genome.segments))
        segment = genome.segments[at]
        offsets, free = set(segment.partial), set(range(1, length)) - set(segment.partial)
        branch = segment.computes
        moves = ["deepen"] if offsets else []
        moves += ["add"] * (len(offsets) < self.max_partial and bool(free))
        moves += ["drop", "shift"] if offsets else []
        move = rng.choice(moves) if moves else "none"
        if move == "deepen":
            branch = mover(self.branches, rng.choice((-1, 1)), rng)(branch)
        if move in ("drop", "shift"):
            old = rng.choice(sorted(offsets))
            offsets.remove(old)
            near = [o for o in free if abs(o - old) <= 2] if move == "shift" else []
            if near:
                offsets.add(rng.choice(sorted(near)))
        if move == "add":
            offsets.add(rng.choice(sorted(free)))
            if not segment.partial:
                branch = first(self.branches, rng)
        changed = Segment.reusing(branch, tuple(sorted(offsets)))
        return self._carry(genome, (*genome.segments[:at], changed, *genome.segments[at + 1 :]))

    def _move_all(self, genome: Genome, rng: Random) -> Genome:
        """Shift every partial step, or change every branch, by the same one: from one even pattern to the next."""
        last = self.length(len(genome.segments)) - 1
        shift, deeper = rng.choice(((-1, 0), (1, 0), (0, -1), (0, 1)))
        move = mover(self.branches, deeper, rng)

        def changed(segment: Segment) -> Segment:
            if not segment.partial:
                return segment
            offsets = tuple(sorted({min(max(offset + shift, 1), last) for offset in segment.partial}))
            return Segment.reusing(move(segment.computes), offsets)

        return self._carry(genome, tuple(map(changed, genome.segments)))

    def _recount(self, genome: Genome, rng: Random) -> Genome:
        count = len(genome.segments)
        low, high = min(self.segments[0], count), max(self.segments[1], count)
        return self._resample(genome, min(max(count + rng.choice((-1, 1)), low), high))

    def _other_solver(self, genome: Genome, rng: Random) -> Genome:
        return genome._replace(solver=rng.choice(self.solvers))

    def _move_time(self, genome: Genome, rng: Random) -> Genome:
        """Move one computed step in time, between its neighbours. The first stays where the noise is."""
        timesteps = [*self.timesteps(genome), self.levels.first_timestep - 1]
        if len(timesteps) == 2:
            return genome
        at = rng.randrange(1, len(timesteps) - 1)
        earliest, latest = timesteps[at - 1] - 1, timesteps[at + 1] + 1
        moved = timesteps[at] + rng.gauss(0, 0.25) * (earliest - latest)
        timesteps[at] = min(max(round(moved), latest), earliest)
        return genome._replace(timesteps=tuple(timesteps[:-1]))

    def _bend_time(self, genome: Genome, rng: Random) -> Genome:
        """Move all computed steps towards the end, or towards the noise: t + 1 = T u^p for t + 1 = T u, if 0 is the first."""
        power, train = rng.choice((0.87, 0.93, 1.07, 1.15)), len(self.levels.alphas_cumprod)
        straight, below = self.timesteps(genome), self.levels.first_timestep - 1
        bent = self._descending([round(train * ((timestep - below) / train) ** power + below) for timestep in straight])
        return genome if bent == straight else genome._replace(timesteps=bent)

    def _best_time(self, genome: Genome, rng: Random) -> Genome:
        """Choose all timesteps anew, with late steps counting more or less."""
        return self.retimed(genome, rng.choice(LATE))

    def _carry(self, genome: Genome, segments: tuple[Segment, ...]) -> Genome:
        """Other segments on the same course of time: a step that stays where it was keeps its timestep, others interpolate."""
        if genome.timesteps is None:
            return genome._replace(segments=segments)
        known = [*self._places(genome.segments), 1.0], [*genome.timesteps, self.levels.first_timestep - 1.0]
        timesteps = np.interp(self._places(segments), *known).round().astype(int).tolist()
        return genome._replace(segments=segments, timesteps=self._descending(timesteps))

    def _places(self, segments: tuple[Segment, ...]) -> list[float]:
        """Where the computed steps lie in the trajectory, from 0 to below 1."""
        length = self.length(len(segments))
        steps = [s * length + offset for s, segment in enumerate(segments) for offset in (0, *segment.partial)]
        return [step / (length * len(segments)) for step in steps]

    def _resample(self, genome: Genome, count: int) -> Genome:
        """The genome's shape with another number of segments: each takes its pattern from the old one at its place in time."""
        if count == len(genome.segments):
            return genome
        old_length, length = self.length(len(genome.segments)), self.length(count)
        segments = []
        for i in range(count):
            source = genome.segments[i * len(genome.segments) // count]
            offsets = {min(max(round(o * length / old_length), 1), length - 1) for o in source.partial} - {0}
            segments.append(Segment.reusing(source.computes, tuple(sorted(offsets))))
        return self._carry(genome, tuple(segments))


MOVES: dict[Callable[[Space, Genome, Random], Genome], int] = {  # and how often
    Space._move_partial: 12,
    Space._move_time: 12,
    Space._move_all: 4,
    Space._bend_time: 4,
    Space._best_time: 4,
    Space._recount: 3,
    Space._other_solver: 1,
}
TIME_MOVES = (Space._move_time, Space._bend_time, Space._best_time)
