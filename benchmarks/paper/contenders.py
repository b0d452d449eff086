"""Who is in the table at each cost: the best that can be set by hand of every kind, the paper's space, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from registry.schedule import Schedule
from search_jobs.baselines import Baseline, Baselines
from search_jobs.screening import PATTERNS, patterns_of

PAPER, OURS = "the paper's space", "ours"
KINDS = {  # families of baselines, and what the table calls them
    "fewer-step ddim": "fewer DDIM steps",
    "fewer-step dpmsolver++": "fewer DPM-Solver++ steps",
    "uniform DeepCache": "uniform DeepCache",
    "non-uniform DeepCache": "non-uniform DeepCache",
    "cached fewer-step ddim": "uniform caching on fewer steps",
    "cached fewer-step dpmsolver++": "uniform caching on fewer steps",
}
BY_HAND = tuple(dict.fromkeys(KINDS.values()))
FINALISTS = 3  # of each place in the table, that are measured on more images than the first few

Loss = Callable[[Schedule], float]


class Place(NamedTuple):
    """A place in the table, which several schedules compete for. seed: of the search, where it is searched."""

    budget: float
    kind: str
    seed: int | None = None


def by_hand(
    baselines: Baselines, budgets: Sequence[float], teacher_steps: int, every: Sequence[int]
) -> dict[Place, list[Baseline]]:
    """Everything that a user could try at each cost."""
    places: dict[Place, list[Baseline]] = {}
    for budget in budgets:
        for baseline in baselines.every_setting(budget, teacher_steps, every):
            places.setdefault(Place(budget, KINDS[baseline.family]), []).append(baseline)
    return places


def in_every_setting(place: Place, schedule: Schedule, baselines: Baselines) -> list[Baseline]:
    """A schedule of the paper's space, which has timesteps of its solver's only, in every setting of the solver."""
    one = Baseline(PAPER, schedule.digest[:12], schedule)
    settings = [one] if schedule.timesteps else [one.on(solver) for solver in baselines.settings(schedule.solver.name)]
    return [found for found in settings if baselines.cost_of(found.schedule) <= place.budget]


def strongest(places: Mapping[Place, Sequence[Baseline]], few: Loss, more: Loss) -> dict[Place, Baseline]:
    """The best of each place: all by the first loss, the best few of them by the second.

    As a search screens them: each pattern of steps as the makers set the solver, only the best patterns in every setting.
    """
    chosen = {}
    for place, candidates in places.items():
        finalists = _screened(candidates, few) if len(candidates) > 1 else candidates
        best = min(finalists, key=lambda one: more(one.schedule) if len(finalists) > 1 else 0.0)
        if len(candidates) == 1 or math.isfinite(more(best.schedule)):
            chosen[place] = best
    return chosen


def _screened(candidates: Sequence[Baseline], loss: Loss) -> list[Baseline]:
    patterns = patterns_of(candidates)
    ranked = sorted((settings[0] for settings in patterns.values()), key=lambda one: loss(one.schedule))
    tried = [one for best in ranked[:PATTERNS] for one in patterns[best.schedule.segments]]
    return sorted([*tried, *ranked[PATTERNS:]], key=lambda one: loss(one.schedule))[:FINALISTS]
