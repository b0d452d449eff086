"""What a user could set by hand, written as schedules: the search starts from it and is held against it.

Published results say why each is here: plain DDIM with 59 steps matches uniform DeepCache N=5 on LDM-4-G (DeepCache,
arXiv 2312.00858, table 2), and uniform caching on a fewer-step solver is stronger than either alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from registry.schedule import MAX_TEACHER_STEPS, ModelRef, Schedule, Segment, Solver, SolverName

BRANCHES = 4  # at most: deeper ones cost more than the full step that they save
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++")


class Baseline(NamedTuple):
    """A schedule set by hand; `family` is the name that plots and tables group by."""

    family: str
    name: str
    schedule: Schedule


class Baselines:
    """The schedules that a user could set by hand for one model: uniform ones, on the solver's own timesteps."""

    def __init__(
        self,
        model: ModelRef,
        solver: Callable[[SolverName, int], Solver],
        branches: int,
        cost_of: Callable[[Schedule], float],
        solvers: Sequence[SolverName] = SOLVERS,
    ) -> None:
        """`solver` makes a solver of so many steps, `cost_of` says what a schedule costs relative to the teacher."""
        self.model, self.solver, self.branches, self.cost_of, self.solvers = model, solver, branches, cost_of, solvers

    def uniform(self, solver: SolverName, full: int, every: int, branch: int) -> Schedule:
        """`full` · `every` steps of a solver, one in `every` full and the others partial: uniform DeepCache on fewer steps."""
        segment = Segment(partial=tuple(range(1, every)), branch=branch if every > 1 else 1)
        return Schedule(model=self.model, solver=self.solver(solver, full * every), segments=(segment,) * full)

    def strongest(self, budget: float, teacher_steps: int, every: Sequence[int] = (2, 3)) -> Iterator[Baseline]:
        """The dearest schedules that the budget affords: one per kind, branch and interval of `every` between full steps."""
        for solver in self.solvers:
            for schedule in self._dearest(budget, lambda full, s=solver: self.uniform(s, full, 1, 1), teacher_steps):  # type: ignore[misc]
                steps = schedule.solver.teacher_steps
                yield Baseline(f"fewer-step {solver}", f"{steps} steps {solver}", schedule)
            for interval in every:
                for branch in range(1, min(self.branches, BRANCHES) + 1):

                    def cached(full: int, s: SolverName = solver, n: int = interval, b: int = branch) -> Schedule:
                        return self.uniform(s, full, n, b)

                    for schedule in self._dearest(budget, cached, teacher_steps // interval):
                        full = len(schedule.segments)
                        name = f"{full}+{full * (interval - 1)} s={branch} {solver}"
                        yield Baseline(f"cached fewer-step {solver}", name, schedule)
        yield from self._deepcache(budget, teacher_steps)

    def _deepcache(self, budget: float, teacher_steps: int) -> Iterator[Baseline]:
        """Uniform DeepCache of the teacher's trajectory: the smallest interval that the budget affords, for every branch."""
        for branch in range(1, min(self.branches, BRANCHES) + 1):
            for every in range(2, teacher_steps + 1):
                full = min(round(teacher_steps / every), MAX_TEACHER_STEPS // every)
                schedule = self.uniform(self.solvers[0], full, every, branch)
                if self.cost_of(schedule) <= budget:
                    yield Baseline("uniform DeepCache", f"DeepCache N={every} s={branch}", schedule)
                    break

    def _dearest(self, budget: float, make: Callable[[int], Schedule], most: int) -> Iterator[Schedule]:
        """Yield the schedule with the most full steps within the budget, if there is one."""
        for full in range(most, 0, -1):
            schedule = make(full)
            if self.cost_of(schedule) <= budget:
                yield schedule
                return
