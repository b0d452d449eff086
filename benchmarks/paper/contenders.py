"""Who is in the table at each cost: the best that can be set by hand of every kind, the paper's space, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.forecast.forecasts import Recipe, taylor
from engine.noise import NoiseLevels
from registry.schedule import Blocks, Schedule
from search_jobs.baselines import Baseline, Baselines
from search_jobs.screening import PATTERNS

PAPER, OURS = "the paper's space", "ours"
OPTIMAL = "optimal timesteps"  # what is set by hand, at those that are best for its solver's own steps
CORRECTED = "set by hand, corrected"  # the best of all that, with corrections as ours has them: what remains is the search's
FEWER = {  # families of baselines without caching, and what the table calls them
    "fewer-step ddim": "fewer DDIM steps",
    "fewer-step euler": "fewer Euler steps",
    "fewer-step dpmsolver++": "fewer DPM-Solver++ steps",
}
UNIFORM, UNEVEN, BOTH = "uniform DeepCache", "non-uniform DeepCache", "uniform caching on fewer steps"
FIRST, FRONT, BACK, ENDS, WHOLE = (
    "first-block cache (1+0)",
    "front blocks (n+0)",
    "back blocks (0+m)",
    "front and back blocks (n+n)",
    "no blocks (0+0)",
)
UNEVEN_BLOCKS = "blocks at uneven intervals"
ORDERS = {"Taylor forecast, order 1": 1, "Taylor forecast, order 2": 2}
OF_UNETS = (FEWER["fewer-step ddim"], FEWER["fewer-step dpmsolver++"], UNIFORM, UNEVEN, BOTH)
OF_TRANSFORMERS = (*FEWER.values(), FIRST, FRONT, BACK, ENDS, WHOLE, UNEVEN_BLOCKS, BOTH, *ORDERS)
FINALISTS = 3  # of each place in the table, that are measured on more images than the first few


class Place(NamedTuple):
    """A place in the table, which several schedules compete for. seed: of the search, where it is searched."""

    budget: float
    kind: str
    seed: int | None = None

    def recipe(self, schedule: Schedule, levels: NoiseLevels) -> Recipe:
        """What images of a schedule are made by here: some kinds forecast what the schedule reuses."""
        order = ORDERS.get(self.kind)
        return Recipe(schedule, None if order is None else taylor(schedule, levels, order))


Loss = Callable[[Place, Schedule], float]
Retimed = Callable[[Schedule], Sequence[Schedule]]
Corrected = Callable[[Sequence[Schedule]], Sequence[Schedule]]


def kinds_of(baseline: Baseline) -> list[str]:
    """What a baseline is in the table, by its family and, of a transformer, by the blocks that its partial steps compute.

    Uniform caching that computes none of the last blocks competes with Taylor forecasts of what it reuses, too.
    """
    branch = next(iter(baseline.schedule.branches), None)
    if baseline.family in FEWER:
        return [FEWER[baseline.family]]
    uniform, uneven = (baseline.family.startswith(kind) for kind in ("uniform ", "non-uniform "))
    if not isinstance(branch, Blocks):
        return [baseline.family if uniform or uneven else BOTH]
    own = _kind_of(branch) if uniform else UNEVEN_BLOCKS if uneven else BOTH
    return [own, *(ORDERS if branch.back == 0 and not uneven else ())]


def _kind_of(branch: Blocks) -> str:
    if branch.front and branch.back:
        return ENDS
    if branch.back:
        return BACK
    return (WHOLE, FIRST)[branch.front] if branch.front < 2 else FRONT


def by_hand(
    baselines: Baselines, budgets: Sequence[float], teacher_steps: int, every: Sequence[int]
) -> dict[Place, list[Baseline]]:
    """Everything that a user could try at each cost."""
    places: dict[Place, list[Baseline]] = {}
    for budget in budgets:
        for baseline in baselines.every_setting(budget, teacher_steps, every):
            for kind in kinds_of(baseline):
                places.setdefault(Place(budget, kind), []).append(baseline)
    return places


def at_optimal_timesteps(chosen: Mapping[Place, Baseline], retimed: Retimed) -> dict[Place, list[Baseline]]:
    """At each cost the best fewer steps of each solver, and the best caching on fewer steps, at optimal timesteps.

    And at their own: who finds those better keeps them.
    """
    places: dict[Place, list[Baseline]] = {}
    for place, one in chosen.items():
        if place.kind in (*FEWER.values(), BOTH):
            found = [Baseline(OPTIMAL, f"{one.name}, optimal", schedule) for schedule in retimed(one.schedule)]
            places.setdefault(Place(place.budget, OPTIMAL), []).extend([*found, one._replace(family=OPTIMAL)])
    return places


def with_corrections(chosen: Mapping[Place, Baseline], corrected: Corrected) -> dict[Place, list[Baseline]]:
    """At each cost all that was chosen of what is set by hand, with corrections. Forecasts have none: they are no schedules."""
    candidates = {(place.budget, one.schedule): one for place, one in chosen.items() if place.kind not in (*ORDERS, PAPER)}
    fitted = dict(zip(candidates, corrected([one.schedule for one in candidates.values()]), strict=True))
    places: dict[Place, list[Baseline]] = {}
    for (budget, schedule), one in candidates.items():
        found = Baseline(CORRECTED, f"{one.name}, corrected", fitted[budget, schedule])
        places.setdefault(Place(budget, CORRECTED), []).append(found)
    return places


def in_every_setting(place: Place, schedule: Schedule, baselines: Baselines) -> list[Baseline]:
    """A schedule of the paper's space, which has timesteps of its solver's only, in every setting of the solver."""
    one = Baseline(PAPER, schedule.digest[:12], schedule)
    settings = [one] if schedule.timesteps else [one.on(solver) for solver in baselines.settings(schedule.solver.name)]
    return [found for found in settings if baselines.cost_of(found.schedule) <= place.budget]


def strongest(places: Mapping[Place, Sequence[Baseline]], few: Loss, more: Loss) -> dict[Place, Baseline]:
    """The best of each place: all by the first loss, the best few of them by the second; or that of a lower cost, if better.

    As a search screens them: each pattern of steps as the makers set the solver, only the best patterns in every setting.
    """
    chosen: dict[Place, Baseline] = {}
    cheaper: dict[Place, tuple[float, Baseline]] = {}  # the best so far of each kind, by its place without a cost
    for place in sorted(places, key=lambda place: place.budget):
        candidates, kind = places[place], place._replace(budget=0.0)
        finalists = _screened(place, candidates, few) if len(candidates) > 1 else candidates
        measured = [(more(place, one.schedule), one) for one in finalists]
        best = min([*measured, *([cheaper[kind]] if kind in cheaper else [])], key=lambda one: one[0])
        if math.isfinite(best[0]):
            chosen[place], cheaper[kind] = best[1], best
    return chosen


def patterns_of(candidates: Sequence[Baseline]) -> dict[tuple[object, ...], list[Baseline]]:
    """By solver and steps, in their order: each pattern of steps in all settings of its solver."""
    patterns: dict[tuple[object, ...], list[Baseline]] = {}
    for one in candidates:
        patterns.setdefault((one.schedule.solver.name, one.schedule.segments), []).append(one)
    return patterns


def _screened(place: Place, candidates: Sequence[Baseline], loss: Loss) -> list[Baseline]:
    patterns = patterns_of(candidates)
    ranked = sorted((settings[0] for settings in patterns.values()), key=lambda one: loss(place, one.schedule))
    tried = [one for best in ranked[:PATTERNS] for one in patterns[best.schedule.solver.name, best.schedule.segments]]
    return sorted([*tried, *ranked[PATTERNS:]], key=lambda one: loss(place, one.schedule))[:FINALISTS]
