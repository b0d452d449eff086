"""What a user could set by hand, written as schedules, so that the search starts from it and is held against it.

Published results say why each is here: plain DDIM with 59 steps matches uniform DeepCache N=5 on LDM-4-G (DeepCache,
arXiv 2312.00858, table 2), and uniform caching on a fewer-step solver is stronger than either alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from registry.schedule import Schedule, Segment, SolverName
from search_jobs.space import Genome, Space


class Baseline(NamedTuple):
    """A schedule set by hand; `family` is the name that plots and tables group by."""

    family: str
    name: str
    schedule: Schedule


def fewer_steps(space: Space, solver: SolverName, steps: int) -> Baseline:
    """`steps` full steps and nothing else."""
    schedule = space.schedule(Genome(solver, (Segment(),) * steps))
    return Baseline(f"fewer-step {solver}", f"{steps} steps {solver}", schedule)


def deepcache(space: Space, solver: SolverName, every: int, branch: int) -> Baseline:
    """Uniform DeepCache over the teacher's trajectory: a full step every `every` steps, partial steps in between."""
    count = -(-space.teacher_steps // every)
    partial = tuple(range(1, space.length(count)))
    schedule = space.schedule(Genome(solver, (Segment(partial=partial, branch=branch),) * count))
    return Baseline("uniform DeepCache", f"DeepCache N={every} s={branch} {solver}", schedule)


def cached_fewer_steps(space: Space, solver: SolverName, full: int, partial: int, branch: int) -> Baseline:
    """Uniform caching on a fewer-step solver: `full` full steps with `partial` evenly spaced partial steps after each.

    Its name gives the full and the partial steps of the trajectory: "5+5 s=3".
    """
    length = space.length(full)
    offsets = tuple(sorted({round(length * k / (partial + 1)) for k in range(1, partial + 1)} & set(range(1, length))))
    schedule = space.schedule(Genome(solver, (Segment(partial=offsets, branch=branch if offsets else 1),) * full))
    return Baseline("cached fewer-step", f"{full}+{full * len(offsets)} s={branch} {solver}", schedule)


def all_baselines(space: Space) -> Iterator[Baseline]:
    """The baselines that fit the space, cheapest families first."""
    low, high = space.segments
    for steps in (4, 5, 6, 8, 10, 12):
        if low <= steps <= high:
            yield fewer_steps(space, "dpmsolver++", steps)
    for steps in (6, 8, 10, 12):
        if low <= steps <= high:
            yield fewer_steps(space, "ddim", steps)
    for solver, every, branch in (("ddim", 5, 1), ("dpmsolver++", 5, 1), ("ddim", 10, 1)):
        if low <= -(-space.teacher_steps // every) <= high:
            yield deepcache(space, solver, every, branch)  # type: ignore[arg-type]  # a literal in a tuple is a str
    cached = [("dpmsolver++", full, branch) for full in (4, 5, 6, 8) for branch in (1, 3)] + [("dpmsolver++", 10, 3)]
    for solver, full, branch in [*cached, ("ddim", 4, 1), ("ddim", 4, 3), ("ddim", 6, 3), ("ddim", 8, 3), ("ddim", 10, 3)]:
        if low <= full <= high and branch <= space.branches:
            yield cached_fewer_steps(space, solver, full, 1, branch)  # type: ignore[arg-type]  # see above
