"""What a search chose: for each tier, and each budget that no tier stands for, a schedule and its strongest rival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]  # a schedule with all that was measured of it (`search_jobs.results`)


@dataclass(frozen=True)
class Aim:
    """A tier, or a budget that no tier stands for, with the strongest baseline under the same ceiling."""

    tier: str
    ceiling: float
    entry: Entry
    strongest: Entry | None

    @classmethod
    def of(cls, tier: str, found: Entry) -> Aim:
        """Of one of the report's budgets. A budget without a tier has an empty name."""
        return cls(tier, found["ceiling"], found, found["strongest_baseline"])

    @property
    def limit(self) -> str:
        """The ceiling as it is written everywhere."""
        return f"≤ {self.ceiling:.3g}"

    @property
    def label(self) -> str:
        """How pictures name it."""
        return self.tier or self.limit

    @property
    def stem(self) -> str:
        """Its part of a file's name."""
        return self.tier or f"{self.ceiling:.3g}"

    @property
    def by_hand(self) -> str | None:
        """The baseline that was chosen; None if what was chosen was searched."""
        baseline = self.entry["baseline"]
        return baseline["name"] if baseline else None

    @property
    def rival(self) -> Entry | None:
        """The strongest baseline, unless that is what was chosen."""
        same = self.strongest and self.strongest["digest"] == self.entry["digest"]
        return None if same else self.strongest


def aims(report: Mapping[str, Any]) -> list[Aim]:
    """Tiers and further budgets, the dearest first."""
    tiers = [Aim.of(name, found) for name, found in report["tiers"].items()]
    named = {aim.ceiling for aim in tiers}
    others = [Aim.of("", found) for found in report["budgets"] if found["ceiling"] not in named]
    return sorted([*tiers, *others], key=lambda aim: -aim.ceiling)
