"""Weights of forecasts: what a partial step takes of the features that the last full steps made.

Plain reuse is the weight 1 of the last one. TaylorSeer (arXiv 2503.06923) extrapolates by a Taylor series whose derivatives are
differences between full steps; what it takes of each feature follows from the timesteps alone, so for a fixed schedule it is
known before. As in arXiv 2508.02240 the forecast is of one feature, the residual of all blocks that are left out. L2P (arXiv
2604.26365) fits such weights by least squares: `benchmarks.forecast.denoisers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import TypeAlias

import numpy as np

from engine.noise import NoiseLevels
from engine.program import path_of
from registry.schedule import Schedule

Weights: TypeAlias = tuple[
    tuple[float, ...], ...
]  # for each partial step: of the last full step's feature, of the one before …


@dataclass(frozen=True)
class Recipe:
    """What images are made by: a schedule, and what its partial steps take of earlier features; None is the schedule's own."""

    schedule: Schedule
    forecast: Weights | None = None

    @property
    def digest(self) -> str:
        """The schedule's own, or of both."""
        if self.forecast is None:
            return self.schedule.digest
        return hashlib.sha256(repr((self.schedule.digest, self.forecast)).encode()).hexdigest()


def taylor(schedule: Schedule, levels: NoiseLevels, order: int) -> Weights:
    """Those of a Taylor forecast at the schedule's timesteps; of a lower order as long as there are too few full steps.

    A derivative is the difference of the one below it now and at the full step before, over the timesteps between the two.
    """
    kinds = [step.kind for step in schedule.steps() if step.kind != "null"]
    found, derivatives, last = list[tuple[float, ...]](), list[np.ndarray](), 0.0
    for kind, timestep in zip(kinds, path_of(schedule, levels).timesteps.tolist(), strict=True):
        if kind == "full":
            made = [np.eye(order + 1)[0]]
            for earlier in derivatives[:order]:
                made.append((made[-1] - np.roll(earlier, 1)) / (timestep - last))
            derivatives, last = made, timestep
        else:
            terms = [(timestep - last) ** i / factorial(i) * derivative for i, derivative in enumerate(derivatives)]
            found.append(tuple(np.sum(terms, axis=0)[: len(derivatives)].tolist()))
    return tuple(found)


def most(weights: Sequence[Sequence[float]]) -> int:
    """How many features a forecast keeps."""
    return max(map(len, weights), default=1)
