"""What a user could set by hand, written as schedules: the search starts from it and is held against it.

Published results say why each is here: plain DDIM with 59 steps matches uniform DeepCache N=5 on LDM-4-G (DeepCache,
arXiv 2312.00858, table 2), and uniform caching on a fewer-step solver is stronger than either alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple, get_args

import numpy as np

from engine.branches import BlockPairs, Branches, usual_branches
from engine.noise import NoiseLevels
from registry.errors import FlexiError
from registry.schedule import KARRAS, MAX_TEACHER_STEPS, Branch, ModelRef, Schedule, Segment, Solver, SolverName, Spacing

BRANCHES = 4  # of a UNet at most, the cheapest: on emoji64 the others cost 0.69 to 0.95 of the full step that they replace
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++")
CENTRES, POWERS = (0.3, 0.5), (1.2, 1.4)  # of non-uniform DeepCache, the first as a share of the trajectory


def usual_solvers(levels: NoiseLevels) -> tuple[SolverName, ...]:
    """Those of a search: the model's own plain one, and the best of second order."""
    return levels.plain_solver, "dpmsolver++"


class Baseline(NamedTuple):
    """A schedule set by hand; `family` is the name that plots and tables group by."""

    family: str
    name: str
    schedule: Schedule

    def on(self, solver: Solver) -> Baseline:
        """The same steps, walked by another setting of the solver."""
        walked = self.schedule.solver.model_copy(update={"spacing": solver.spacing, "karras": solver.karras})
        if walked == self.schedule.solver:
            return self
        setting = "Karras levels" if solver.karras else solver.spacing
        return self._replace(name=f"{self.name}, {setting}", schedule=self.schedule.model_copy(update={"solver": walked}))


class Baselines:
    """The schedules that a user could set by hand for one model: patterns of steps that repeat, at the solver's own timesteps.

    Where the model's makers bound its clean latents, DPM-Solver++ does here too: without it its images of pixels are ruined.
    """

    def __init__(
        self,
        model: ModelRef,
        levels: NoiseLevels,
        branches: Branches,
        cost_of: Callable[[Schedule], float],
        solvers: Sequence[SolverName] = SOLVERS,
    ) -> None:
        """`cost_of` says what a schedule costs relative to the teacher; solvers: those that the makers' settings allow."""
        self.model, self.levels, self.branches, self.cost_of, self.solvers = model, levels, branches, cost_of, solvers

    def solver(self, name: SolverName, steps: int) -> Solver:
        """A solver as the makers set it."""
        clip = self.levels.clips and name == "dpmsolver++"
        return self.levels.solver(name, steps).model_copy(update={"clip": clip})

    def settings(self, name: SolverName) -> list[Solver]:
        """Every setting of a solver that a user has, the makers' own first: timestep spacings, and Karras' levels.

        One that the model cannot start from (epsilon at a level without signal) is left out. On Karras' levels the spacing
        decides nothing.
        """
        own = self.solver(name, 2)
        spacings = get_args(Spacing) if name != "lcm" else ()  # which has timesteps of its own
        others = [own.model_copy(update={"spacing": spacing, "karras": False}) for spacing in spacings]
        others += [own.model_copy(update={"karras": True})] if name in KARRAS else []
        return [solver for solver in dict.fromkeys([own, *others]) if self._runs(solver)]

    def uniform(self, solver: SolverName, full: int, every: int, branch: Branch) -> Schedule:
        """`full` · `every` steps of a solver, one in `every` full and the others partial: uniform DeepCache on fewer steps."""
        segment = Segment.reusing(branch, tuple(range(1, every)))
        return Schedule(model=self.model, solver=self.solver(solver, full * every), segments=(segment,) * full)

    def strongest(self, budget: float, teacher_steps: int, every: Sequence[int] = (2, 3)) -> Iterator[Baseline]:
        """The dearest schedules that the budget affords: `even` ones, and uniform DeepCache, as the makers set the solvers.

        Those of full steps alone are in every setting, which decides as much as anything where steps are few.
        """
        for baseline in self._as_the_makers_set(budget, teacher_steps, every):
            yield from (baseline,) if baseline.schedule.branches else self._in_every_setting(baseline)

    def even(
        self, budget: float, teacher_steps: int, solvers: Sequence[SolverName], every: Sequence[int]
    ) -> Iterator[Baseline]:
        """The dearest even patterns of steps that the budget affords: fewer steps, and caching on fewer steps.

        One per solver, branch and interval of `every` between full steps.
        """
        for solver in solvers:
            for schedule in self._dearest(budget, lambda full, s=solver: self.uniform(s, full, 1, 1), teacher_steps):  # type: ignore[misc]
                steps = schedule.solver.teacher_steps
                yield Baseline(f"fewer-step {solver}", f"{steps} steps {solver}", schedule)
            for interval in every:
                for branch in self.usual:

                    def cached(full: int, s: SolverName = solver, n: int = interval, b: Branch = branch) -> Schedule:
                        return self.uniform(s, full, n, b)

                    for schedule in self._dearest(budget, cached, teacher_steps // interval):
                        full = len(schedule.segments)
                        name = f"{full}+{full * (interval - 1)} s={branch} {solver}"
                        yield Baseline(f"cached fewer-step {solver}", name, schedule)

    def every_setting(self, budget: float, teacher_steps: int, every: Sequence[int] = (2, 3, 4, 5)) -> Iterator[Baseline]:
        """As `strongest`, all of them in every setting, and non-uniform DeepCache besides: all that a user could try."""
        for baseline in self._as_the_makers_set(budget, teacher_steps, every):
            yield from self._in_every_setting(baseline)
        uneven_ones: dict[Schedule, Baseline] = {}  # of which several rules may be one schedule
        for solver in self._settings.get(self.levels.plain_solver, ()):
            for baseline in self._non_uniform(budget, solver.model_copy(update={"teacher_steps": teacher_steps})):
                uneven_ones.setdefault(baseline.schedule, baseline)
        yield from uneven_ones.values()

    @cached_property
    def _settings(self) -> dict[SolverName, list[Solver]]:
        return {name: self.settings(name) for name in self.solvers}

    def _as_the_makers_set(self, budget: float, teacher_steps: int, every: Sequence[int]) -> Iterator[Baseline]:
        yield from self.even(budget, teacher_steps, self.solvers, every)
        yield from self._deepcache(budget, teacher_steps)

    def _in_every_setting(self, baseline: Baseline) -> Iterator[Baseline]:
        return (baseline.on(solver) for solver in self._settings[baseline.schedule.solver.name])

    @property
    def usual(self) -> Sequence[Branch]:
        """The branches that are tried."""
        return usual_branches(self.branches, BRANCHES)

    @property
    def _caching(self) -> str:
        """What caching on the teacher's steps is called: of a transformer not DeepCache, whose branches are a UNet's."""
        return "caching" if isinstance(self.branches, BlockPairs) else "DeepCache"

    def _runs(self, solver: Solver) -> bool:
        schedule = Schedule(model=self.model, solver=solver, segments=(Segment(),) * solver.teacher_steps)
        try:
            self.cost_of(schedule)
        except FlexiError:
            return False
        return True

    def _deepcache(self, budget: float, teacher_steps: int) -> Iterator[Baseline]:
        """Uniform DeepCache of the teacher's trajectory: the smallest interval that the budget affords, for every branch."""
        if self.levels.plain_solver not in self.solvers:
            return
        for branch in self.usual:
            for every in range(2, teacher_steps + 1):
                full = min(round(teacher_steps / every), MAX_TEACHER_STEPS // every)
                schedule = self.uniform(self.levels.plain_solver, full, every, branch)
                if self.cost_of(schedule) <= budget:
                    yield Baseline(f"uniform {self._caching}", f"{self._caching} N={every} s={branch}", schedule)
                    break

    def _non_uniform(self, budget: float, solver: Solver) -> Iterator[Baseline]:
        """Non-uniform DeepCache: all steps of the teacher's trajectory, as many of them full as the budget affords."""
        setting = "" if solver.spacing == self.levels.walks[solver.name].spacing else f", {solver.spacing}"
        for branch, centre, power in product(self.usual, CENTRES, POWERS):

            def cached(full: int, b: Branch = branch, c: float = centre, p: float = power) -> Schedule | None:
                return self._at(solver, uneven(solver.teacher_steps, full, c, p), b)

            for schedule in self._dearest(budget, cached, solver.teacher_steps // 2):
                full, centred = len(schedule.segments), round(centre * solver.teacher_steps)
                name = f"{self._caching} {full} full c={centred} p={power:g} s={branch}{setting}"
                yield Baseline(f"non-uniform {self._caching}", name, schedule)

    def _at(self, solver: Solver, full: Sequence[int], branch: Branch) -> Schedule | None:
        """Every step of a solver's trajectory, those of these indices full, the others partial.

        Segments are equally long, so the schedule says the timesteps itself. None where that makes the trajectory too long, and
        for fewer than three full steps, which no rule spreads.
        """
        gaps = [after - at for at, after in pairwise([*full, solver.teacher_steps])]
        steps = len(gaps) * max(gaps)
        if len(gaps) < 3 or steps > min(MAX_TEACHER_STEPS, len(self.levels.alphas_cumprod)):
            return None
        segments = [Segment.reusing(branch, tuple(range(1, gap))) for gap in gaps]
        return Schedule(
            model=self.model,
            solver=solver.model_copy(update={"teacher_steps": steps}),
            segments=tuple(segments),
            timesteps=tuple(self.levels.trajectory(solver).timesteps.round().astype(int).tolist()),
        )

    def _dearest(self, budget: float, make: Callable[[int], Schedule | None], most: int) -> Iterator[Schedule]:
        """Yield the schedule with the most full steps within the budget, if there is one."""
        for full in range(most, 0, -1):
            schedule = make(full)
            if schedule is not None and self.cost_of(schedule) <= budget:
                yield schedule
                return


def uneven(steps: int, full: int, centre: float, power: float) -> list[int]:
    """Indices of the full steps of non-uniform DeepCache (arXiv 2312.00858, section 4.3): dense around `centre` · `steps`.

    Linear between the ends in (i − c)^{1/p}, signed, then back; steps that round to one are one, so there may be fewer.
    """
    middle = centre * steps
    ends = np.array([-middle, steps - middle])
    first, last = np.sign(ends) * np.abs(ends) ** (1 / power)
    spread = np.linspace(first, last, full + 1)[:-1]
    return sorted({int(index) for index in np.round(np.sign(spread) * np.abs(spread) ** power + middle, 6)})
