"""Which of the schedules that a user could set by hand are the strongest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from registry.schedule import Segment
from search_jobs.baselines import Baseline
from search_jobs.evaluations import Evaluations

K = TypeVar("K", bound=Hashable)
PATTERNS = 4  # of steps that are measured in every setting of the solver
RIVALS = 3  # baselines of each group that are measured on more images than the first few


def screened(evaluations: Evaluations, groups: Mapping[K, Sequence[Baseline]]) -> dict[K, list[Baseline]]:
    """The baselines of each group that were evaluated on the first rung, as a user would set them, the best first.

    Many are the same steps in another setting of the solver, which decides less than the steps do: each pattern of steps is
    evaluated in the first setting that its group has of it, and only the best of them in the others.
    """
    patterns = {name: patterns_of(baselines) for name, baselines in groups.items()}
    firsts = {name: [settings[0] for settings in of_group.values()] for name, of_group in patterns.items()}
    ranked = _by_loss(evaluations, "by hand, screen", "screen", firsts)
    tried = {}
    for name, best in ranked.items():
        settings = [patterns[name][baseline.schedule.segments] for baseline in best[:PATTERNS]]
        tried[name] = [*(baseline for of_pattern in settings for baseline in of_pattern), *best[PATTERNS:]]
    return _by_loss(evaluations, "by hand, other settings", "screen", tried)


def strongest(evaluations: Evaluations, ranked: Mapping[K, Sequence[Baseline]]) -> dict[K, list[Baseline]]:
    """Of the screened baselines the best few of each group by their loss on the images of the second rung, the best first."""
    few = {name: baselines[:RIVALS] for name, baselines in ranked.items()}
    return _by_loss(evaluations, "by hand, search", "search", few)


def patterns_of(baselines: Sequence[Baseline]) -> dict[tuple[Segment, ...], list[Baseline]]:
    """The baselines by their steps, in their order: each pattern of steps in all settings of the solver."""
    patterns: dict[tuple[Segment, ...], list[Baseline]] = {}
    for baseline in baselines:
        patterns.setdefault(baseline.schedule.segments, []).append(baseline)
    return patterns


def _by_loss(
    evaluations: Evaluations, part: str, stage: str, groups: Mapping[K, Sequence[Baseline]]
) -> dict[K, list[Baseline]]:
    """The baselines of each group by their loss in a stage, the best first."""
    schedules = [baseline.schedule for baselines in groups.values() for baseline in baselines]
    losses = evaluations.losses(part, stage, schedules)
    return {name: sorted(group, key=lambda baseline: losses[baseline.schedule.digest]) for name, group in groups.items()}
