"""What a wave costs, learnt from those that ran."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

MEMORY = 0.98  # how much of the past one more wave leaves


@dataclass
class CostCurve:
    """Seconds of a wave of one kind = own + each · rows, fitted by least squares in which older waves count less and less.

    A kind that never ran counts as `guess` seconds a row.
    """

    guess: float = 1e-3
    _sums: dict[Hashable, np.ndarray] = field(default_factory=dict)

    def observe(self, kind: Hashable, rows: int, seconds: float) -> None:
        """A wave of `rows` UNet rows took so long."""
        old = self._sums.get(kind, np.zeros(5))
        self._sums[kind] = MEMORY * old + np.array([1.0, rows, rows * rows, seconds, rows * seconds])

    def fit(self, kind: Hashable) -> tuple[float, float]:
        """(own, each) in seconds, neither below 0. Waves of one size only cannot tell them apart: then all is per row."""
        if kind not in self._sums:
            return 0.0, self.guess
        n, rows, squares, seconds, products = self._sums[kind]
        spread = n * squares - rows * rows
        each = (n * products - rows * seconds) / spread if spread > 1e-3 * squares * n else seconds / rows
        each = min(max(each, 0.0), seconds / rows)
        return (seconds - each * rows) / n, each

    def seconds(self, kind: Hashable, rows: int) -> float:
        """Of a wave of `rows` UNet rows."""
        own, each = self.fit(kind)
        return own + each * rows
