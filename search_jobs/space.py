"""The space that is searched: what may vary in a schedule, and how to vary it. Every genome is a valid schedule."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from random import Random
from typing import NamedTuple

from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName, Spacing


class Genome(NamedTuple):
    """The genes: the solver, and per segment the offsets of its partial steps and their branch."""

    solver: SolverName
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Space:
    """All schedules of one model with about `teacher_steps` steps.

    The number of segments n is a gene as well. A segment has round(teacher_steps / n) steps, so a trajectory has
    n · round(teacher_steps / n): exactly `teacher_steps` where n divides it, otherwise the nearest multiple. `max_partial`
    bounds what mutation adds to a segment; a genome that starts with more (uniform DeepCache) keeps them and can lose them.
    """

    model: ModelRef
    spacing: Spacing
    branches: int
    teacher_steps: int = 50
    solvers: tuple[SolverName, ...] = ("ddim", "dpmsolver++")
    segments: tuple[int, int] = (3, 16)
    max_partial: int = 3

    def length(self, count: int) -> int:
        """Steps in each of `count` segments."""
        return max(1, round(self.teacher_steps / count))

    def schedule(self, genome: Genome) -> Schedule:
        """The schedule that these genes make."""
        steps = len(genome.segments) * self.length(len(genome.segments))
        solver = Solver(name=genome.solver, teacher_steps=steps, spacing=self.spacing)
        return Schedule(model=self.model, solver=solver, segments=genome.segments)

    def genome(self, schedule: Schedule) -> Genome:
        """The genes of a schedule; the inverse of `schedule` for every schedule that the space holds."""
        return Genome(schedule.solver.name, schedule.segments)

    def size(self) -> int:
        """How many genomes have at most `max_partial` partial steps in a segment.

        Σ_n solvers · (1 + branches · Σ_k C(L_n − 1, k))^n, with L_n = `length(n)`.
        """
        total = 0
        for count in range(self.segments[0], self.segments[1] + 1):
            inner = self.length(count) - 1
            offsets = sum(comb(inner, k) for k in range(1, min(self.max_partial, inner) + 1))
            total += len(self.solvers) * (1 + self.branches * offsets) ** count
        return total

    def mutate(self, genome: Genome, rng: Random) -> Genome:
        """A neighbour: one or two small changes, mostly to where partial steps lie and how deep they go.

        Gives `genome` back only when tries to change it keep failing, as in a space of one point.
        """
        for _ in range(100):
            child = genome
            for _ in range(rng.choice((1, 1, 2))):
                change = rng.choices((self._move_partial, self._move_all, self._recount, self._other_solver), (12, 4, 3, 1))[0]
                child = change(child, rng)
            if child != genome:
                return child
        return genome

    def crossover(self, first: Genome, second: Genome, rng: Random) -> Genome:
        """Early segments of one parent, late ones of the other; `second` is resampled to the segment count of `first`."""
        tail = self._resample(second, len(first.segments)).segments
        cut = rng.randrange(len(first.segments))
        return Genome(first.solver, first.segments[:cut] + tail[cut:])

    def _move_partial(self, genome: Genome, rng: Random) -> Genome:
        """Add, drop or shift a partial step in one segment, or change the segment's branch. A shift with no room is a drop."""
        length = self.length(len(genome.segments))
        at = rng.randrange(len(genome.segments))
        segment = genome.segments[at]
        offsets, free = set(segment.partial), set(range(1, length)) - set(segment.partial)
        branch = segment.branch
        moves = ["deepen"] if offsets else []
        moves += ["add"] * (len(offsets) < self.max_partial and bool(free))
        moves += ["drop", "shift"] if offsets else []
        move = rng.choice(moves) if moves else "none"
        if move == "deepen":
            branch = min(max(branch + rng.choice((-1, 1)), 1), self.branches)
        if move in ("drop", "shift"):
            old = rng.choice(sorted(offsets))
            offsets.remove(old)
            near = [o for o in free if abs(o - old) <= 2] if move == "shift" else []
            if near:
                offsets.add(rng.choice(sorted(near)))
        if move == "add":
            offsets.add(rng.choice(sorted(free)))
            if not segment.partial:
                branch = rng.randint(1, min(4, self.branches))
        changed = Segment(partial=tuple(sorted(offsets)), branch=branch if offsets else 1)
        return Genome(genome.solver, (*genome.segments[:at], changed, *genome.segments[at + 1 :]))

    def _move_all(self, genome: Genome, rng: Random) -> Genome:
        """Shift every partial step, or change every branch, by the same one: from one even pattern to the next."""
        last = self.length(len(genome.segments)) - 1
        shift, deeper = rng.choice(((-1, 0), (1, 0), (0, -1), (0, 1)))

        def moved(segment: Segment) -> Segment:
            if not segment.partial:
                return segment
            offsets = tuple(sorted({min(max(offset + shift, 1), last) for offset in segment.partial}))
            return Segment(partial=offsets, branch=min(max(segment.branch + deeper, 1), self.branches))

        return Genome(genome.solver, tuple(map(moved, genome.segments)))

    def _recount(self, genome: Genome, rng: Random) -> Genome:
        low, high = self.segments
        return self._resample(genome, min(max(len(genome.segments) + rng.choice((-1, 1)), low), high))

    def _other_solver(self, genome: Genome, rng: Random) -> Genome:
        return Genome(rng.choice(self.solvers), genome.segments)

    def _resample(self, genome: Genome, count: int) -> Genome:
        """The same shape with another number of segments: each takes its pattern from the old one at its place in time."""
        if count == len(genome.segments):
            return genome
        old_length, length = self.length(len(genome.segments)), self.length(count)
        segments = []
        for i in range(count):
            source = genome.segments[i * len(genome.segments) // count]
            offsets = {min(max(round(o * length / old_length), 1), length - 1) for o in source.partial} - {0}
            segments.append(Segment(partial=tuple(sorted(offsets)), branch=source.branch if offsets else 1))
        return Genome(genome.solver, tuple(segments))
