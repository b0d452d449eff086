"""What a search chose: for each tier, and each budget that no tier stands for, a schedule and its strongest rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]  # a schedule with all that was measured of it (`search_jobs.results`)


@dataclass(frozen=True)
class CostTarget:
    """A cost that the search aimed at, with the schedule chosen for it and the strongest baseline under the same ceiling.

    `tier` is the tier whose ceiling it is; empty for a further budget.
    """

    tier: str
    ceiling: float
    entry: Entry
    strongest: Entry | None

    @classmethod
    def of(cls, tier: str, budget: Entry) -> CostTarget:
        """The target of one of the report's budgets."""
        return cls(tier, budget["ceiling"], budget, budget["strongest_baseline"])

    @property
    def limit(self) -> str:
        """The ceiling as text, such as "≤ 0.2"."""
        return f"≤ {self.ceiling:.3g}"

    @property
    def label(self) -> str:
        """The name in pictures and on the page: the tier's, else the ceiling."""
        return self.tier or self.limit

    @property
    def stem(self) -> str:
        """The name as a part of a file's name."""
        return self.tier or f"{self.ceiling:.3g}"

    @property
    def by_hand(self) -> str | None:
        """The name of the baseline that was chosen; None if the search found what was chosen."""
        baseline = self.entry["baseline"]
        return baseline["name"] if baseline else None

    @property
    def rival(self) -> Entry | None:
        """The strongest baseline, unless that is what was chosen."""
        same = self.strongest and self.strongest["digest"] == self.entry["digest"]
        return None if same else self.strongest

    @property
    def ratio(self) -> Mapping[str, float] | None:
        """Its rFID over the rival's, paired by image, with its interval; None where that was not measured."""
        against: Mapping[str, Mapping[str, float]] = self.entry.get("against_baseline", {})
        return against.get("rfid")


def targets(report: Mapping[str, Any]) -> list[CostTarget]:
    """Tiers and further budgets, the dearest first."""
    tiers = [CostTarget.of(name, budget) for name, budget in report["tiers"].items()]
    named = {target.ceiling for target in tiers}
    others = [CostTarget.of("", budget) for budget in report["budgets"] if budget["ceiling"] not in named]
    return sorted([*tiers, *others], key=lambda target: -target.ceiling)
