"""The search itself: what can be set by hand, then generations of children that climb the rungs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from engine.model import Model
from registry.schedule import Schedule, SolverName
from search_jobs.baselines import Baseline
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.config import JobConfig
from search_jobs.distilled import solvers
from search_jobs.evaluations import Evaluations
from search_jobs.ladder import Ladder
from search_jobs.optimiser import PARENTS, Evolution
from search_jobs.screening import screened, strongest
from search_jobs.space import Genome, Space

ALIKE = 0.0  # what late steps count at first, and where steps are the solver's own: no more and no less than early ones
INTERVALS = (2, 3, 4, 5)  # between full steps, of the even patterns that a search begins with
EVEN = 16  # of them for each budget, about


def intervals(branches: int) -> Sequence[int]:
    """Those of the even patterns that a search begins with: fewer where there are many branches, but two at least."""
    return INTERVALS[: max(2, EVEN // branches)]


def space_of(model: Model, config: JobConfig) -> Space:
    """All schedules that a search may choose.

    Corrections make one solver of two: steps of either are linear in what both have at hand, so the fitted ones are the same.
    Where clean latents are clipped they are not, and without timesteps of their own schedules walk each solver's grid.
    """
    high = min(config.max_segments, config.teacher_steps)
    usable = solvers(model)
    alike = config.correct and config.retime and model.levels.clip == inf
    return Space(
        model=model.ref,
        levels=model.levels_at(None if config.size is None else model.other_size(config.size)),
        branches=model.network.branches,
        teacher_steps=config.teacher_steps,
        solvers=usable[:1] if alike else usable,
        segments=(min(2, high), high),
        max_partial=config.max_partial,
        retime=config.retime,
        offsets=config.offsets,
    )


class Search:
    """Finds the best schedules of each budget: `by_hand` and `begin` first, then `run`.

    rivals: of each budget the strongest baselines, the best first. plain: of each budget the best uncorrected schedule at
    timesteps of its own, if any. It decides by its space, with the teacher's path in it, by
    what it measures and by its configuration alone, so one that was killed and finds all of that again takes the same way.
    """

    def __init__(
        self,
        config: JobConfig,
        space: Space,
        evaluations: Evaluations,
        cost_of: Callable[[Schedule], float],
        own: Mapping[SolverName, BestTimesteps] | None = None,
    ) -> None:
        """own: the best timesteps for the steps of these solvers, as they are without corrections."""
        self.own = own or {}
        self.config, self.space, self.evaluations = config, space, evaluations
        self.ladder = Ladder(config, space, evaluations)
        self.evolution = Evolution(
            space, lambda genome: cost_of(space.schedule(genome)), config.ceilings, config.population, config.seed
        )
        self.rivals: dict[float, list[Baseline]] = {}
        self.plain: dict[float, list[Schedule]] = {}

    def by_hand(self, every: Mapping[float, Sequence[Baseline]]) -> None:
        """Find the strongest of each budget's baselines: what is found is held against them."""
        self.rivals = strongest(self.evaluations, screened(self.evaluations, every))
        self.plain = self._plain(every)

    def begin(self, even: Mapping[float, Sequence[Schedule]]) -> None:
        """The first children: even patterns of steps, at the best timesteps for as many, and what is strongest by hand.

        Corrections mend most of what caching does to an image and little of what few steps do, so patterns rank otherwise with
        them than without: what is best by hand is not enough to begin with. Corrected it stands among the others.
        """
        adopted = [self._adopted(schedules) for schedules in even.values()]
        self.evolution.initial += [self.space.retimed(genome, ALIKE) for genomes in adopted for genome in genomes]
        for budget, rivals in self.rivals.items():
            self.evolution.initial += self._adopted([*(one.schedule for one in rivals), *self.plain.get(budget, ())])

    def _adopted(self, schedules: Iterable[Schedule]) -> list[Genome]:
        """The genes of those that the space can hold."""
        return [genome for schedule in schedules if (genome := self.space.adopt(schedule))]

    def _plain(self, every: Mapping[float, Sequence[Baseline]]) -> dict[float, list[Schedule]]:
        """Of each budget the best schedule of full steps alone at the best timesteps for its solver's own steps, uncorrected.

        Corrections bring latents nearer to the teacher's, and images mostly. Of very few steps those do not always follow.
        """
        groups = {budget: self._retimed(baselines) for budget, baselines in every.items()}
        of_all = [schedule for schedules in groups.values() for schedule in schedules]
        losses = self.evaluations.losses("uncorrected, search", "search", of_all) if of_all else {}
        return {budget: sorted(group, key=lambda one: losses[one.digest])[:1] for budget, group in groups.items()}

    def _retimed(self, baselines: Sequence[Baseline]) -> list[Schedule]:
        """Full steps alone at the best timesteps for as many, one a solver: in the makers' setting, which comes first."""
        found: dict[tuple[SolverName, int], Schedule] = {}
        for schedule in (one.schedule for one in baselines if not one.schedule.branches):
            name, steps = schedule.solver.name, schedule.computed
            if (name, steps) not in found and (own := self.own.get(name)) and (timesteps := own.chosen(steps, ALIKE)):
                changed = schedule.model_dump() | {"timesteps": timesteps}
                changed["solver"]["karras"] = False  # whose levels leave no choice of timesteps
                found[name, steps] = Schedule.model_validate(changed)
        return list(found.values())

    def run(self) -> None:
        """All generations of the configuration, or those until somebody interrupts one; the first must be whole."""
        try:
            while self.evolution.generation <= self.config.generations:
                self.generation()
        except KeyboardInterrupt:
            if not self.evolution.history:
                raise
            self.evaluations.progress.begin("stopped: deciding by what was found (Ctrl-C again leaves at once)", 0)

    def generation(self) -> int:
        """One more generation, and how many children it had: none where the space is exhausted.

        What comes of it does not depend on how many follow.
        """
        number, children = self.evolution.generation, self.evolution.ask()
        part, least = (f"generation {number}", 1) if number else ("even patterns", PARENTS)
        self.evolution.tell(self.ladder.climb(part, children, least))
        return len(children)

    def finalists(self) -> dict[float, list[Schedule]]:
        """The best schedules of each budget, with their corrections, the best first; the best one without comes last."""
        fitted, best, count = self.ladder.fitted, self.evolution.best, self.config.finalists
        return {
            budget: [*(fitted[point.genome] for point in best(budget)[:count]), *self.plain.get(budget, ())]
            for budget in self.config.ceilings
        }
