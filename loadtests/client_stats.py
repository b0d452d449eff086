"""What the clients of a profile saw: times, refusals, hang-ups, arms, and the MACs that answers billed. No input or output."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class ClientStats:
    """What all users of one locust process saw. `name` is a tier or an arm; latencies are in ms, MACs per image."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    abandoned: Counter[str] = field(default_factory=Counter)
    billed: Counter[str] = field(default_factory=Counter)
    price: dict[str, int] = field(default_factory=dict)
    users: Counter[int] = field(default_factory=Counter)
    arms: dict[str, str] = field(default_factory=dict)  # by unit

    def joined(self, user: int) -> None:
        """Count a user, so that one who is never answered counts too."""
        self.users[user] += 0

    def answered(self, name: str, user: int, milliseconds: float, macs: int) -> None:
        """Count an image: its latency, and the MACs that its answer bills."""
        self.latencies[name].append(milliseconds)
        self.billed[name] += macs
        self.price[name] = max(macs, self.price.get(name, 0))
        self.users[user] += 1

    def assigned(self, unit: str, arm: str) -> bool:
        """Note a unit's arm. Returns whether it is the one that the unit had before."""
        return self.arms.setdefault(unit, arm) == arm

    def result(self, exported_macs: float, relative_costs: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Everything that `check` looks at. `exported_macs`: by how much flexi_macs_total grew meanwhile.

        `abandoned_macs` is what the abandoned requests would have cost had they run to their end. A name that was never
        answered has the teacher's price times its relative cost, or the dearest known price where that is not among them.
        """
        relative = relative_costs or {}
        names = sorted({*self.latencies, *self.failures, *self.refused, *self.abandoned})
        teacher = max((macs / relative.get(name, 1.0) for name, macs in self.price.items()), default=0)
        prices = {name: self.price.get(name, teacher * relative.get(name, 1.0)) for name in names}
        return {
            "names": {name: self._figures(name) for name in names},
            "fairness": jain(list(self.users.values())),
            "units": Counter(self.arms.values()),
            "billed_macs": sum(self.billed.values()),
            "exported_macs": exported_macs,
            "abandoned_macs": sum(count * prices[name] for name, count in self.abandoned.items()),
        }

    def _figures(self, name: str) -> dict[str, float]:
        times = self.latencies[name]
        p50, p95 = np.percentile(times, [50, 95]).tolist() if times else (0.0, 0.0)
        return {
            "answered": len(times),
            "failed": self.failures[name],
            "refused": self.refused[name],
            "abandoned": self.abandoned[name],
            "p50_ms": p50,
            "p95_ms": p95,
        }


def jain(shares: list[int]) -> float:
    """(Σx)² / (n Σx²): 1 when all got the same, 1/n when one got everything (Jain, Chiu & Hawe, DEC-TR-301, 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0
