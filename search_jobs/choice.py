"""What a search chooses for each budget, and how that gets its corrections for other guidance scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from registry.corrections import Correction, ScaledCorrections
from registry.errors import InvalidInput
from registry.schedule import Schedule
from search_jobs.baselines import Baseline
from search_jobs.evaluations import Evaluations
from search_jobs.stages import fit_at


@dataclass(frozen=True)
class BudgetChoice:
    """A budget's schedule, and the strongest baseline that it affords.

    searched: the schedule as the search decided for it, before it got corrections for other guidance scales than its own.
    """

    schedule: Schedule
    baseline: Baseline | None
    ceiling: float
    searched: Schedule

    def scaled(self, fits: Mapping[float, tuple[Correction, ...]]) -> BudgetChoice:
        """The choice with the corrections of each of these guidance scales."""
        fitted = tuple(ScaledCorrections(guidance=scale, corrections=fits[scale]) for scale in sorted(fits))
        return replace(self, schedule=self.schedule.model_copy(update={"corrections": None, "scaled_corrections": fitted}))

    def schedules(self) -> list[Schedule]:
        """The schedule, and that of its strongest baseline."""
        return [self.schedule] + ([self.baseline.schedule] if self.baseline else [])


def choices(
    evaluations: Evaluations, found: Mapping[float, Sequence[Schedule]], by_hand: Mapping[float, Sequence[Baseline]]
) -> list[BudgetChoice]:
    """The best of each budget's finalists, on noise they were not picked by: luck does not win twice.

    Finalists are the best that were `found`, and the strongest baselines `by_hand`, so that no tier is worse than what can be
    set by hand, as far as these images tell. Raises `InvalidInput` for a budget with neither.
    """
    finalists = {budget: [*found[budget], *(baseline.schedule for baseline in by_hand[budget])] for budget in found}
    if poor := [budget for budget, schedules in finalists.items() if not schedules]:
        raise InvalidInput(f"nothing costs at most {poor[0]:g} of the teacher", param="tiers")
    losses = evaluations.losses("finals", "finals", [one for schedules in finalists.values() for one in schedules])
    chosen = []
    for budget, schedules in finalists.items():
        best = min(schedules, key=lambda schedule: losses[schedule.digest])
        strongest = min(by_hand[budget], key=lambda baseline: losses[baseline.schedule.digest], default=None)
        chosen.append(BudgetChoice(best, strongest, budget, best))
    return chosen


def at_scales(
    evaluations: Evaluations, chosen: Sequence[BudgetChoice], guidance: float, others: Sequence[float]
) -> list[BudgetChoice]:
    """The choices with corrections for every guidance scale, fitted at each as the search fitted them at its own."""
    fitted = {choice.schedule.digest: choice.schedule for choice in chosen if choice.schedule.corrections}
    fits = {digest: {guidance: schedule.corrections or ()} for digest, schedule in fitted.items()}
    bare = [schedule.model_copy(update={"corrections": None}) for schedule in fitted.values()]
    for scale in others:
        evaluations.progress.begin(f"corrections at guidance {scale:g}", len(bare) * evaluations.images_of(fit_at(scale)))
        for digest, evaluation in zip(fits, evaluations.of(fit_at(scale), bare, fitting=True), strict=True):
            fits[digest][scale] = evaluation.schedule.corrections or ()
    return [
        choice.scaled(fits[choice.schedule.digest]) if others and choice.schedule.digest in fits else choice
        for choice in chosen
    ]
