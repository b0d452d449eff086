"""What a wave costs, learnt from those that ran."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from engine.buckets import EXACT, Buckets
from engine.program_step import Need

MEMORY = 0.98  # how much of the past one more wave leaves


@dataclass
class CostCurve:
    """Seconds of a wave of one kind = own + per_row · rows, fitted by least squares in which older waves count less and less.

    `own` is the call's own cost, and rows are those of the UNet's batch, which `buckets` may pad. A kind that never ran counts
    as `guess` seconds a row; one with a longer context, or with LoRAs, which no warm-up ran, as the same without. All sets of
    LoRAs count as one kind: their waves are the same work.
    """

    guess: float = 1e-3
    buckets: Buckets = EXACT
    _sums: dict[Hashable, tuple[float, ...]] = field(default_factory=dict)
    _fits: dict[Hashable, tuple[float, float]] = field(default_factory=dict)  # of `_sums` as they are

    def observe(self, kind: Hashable, rows: int, seconds: float) -> None:
        """A wave of `rows` UNet rows took so long, its padding included."""
        rows, kind = self.buckets.padded(rows), _counted_as(kind)
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        old = self._sums.get(kind, (0.0,) * len(new))
        self._sums[kind] = tuple(MEMORY * so_far + one for so_far, one in zip(old, new, strict=True))
        self._fits[kind] = self._fit(kind)

    def fit(self, kind: Hashable) -> tuple[float, float]:
        """(own, per_row) in seconds, neither below 0. Waves of one size only cannot tell them apart: then all is per row."""
        if (known := self._fits.get(kind)) is not None:  # nearly always: policies ask often
            return known
        kind = _counted_as(kind)
        if isinstance(kind, Need):
            likest = (kind, kind._replace(adapters=""), kind.at(kind.size))
            kind = next((known for known in likest if known in self._fits), kind)
        return self._fits.get(kind, (0.0, self.guess))

    def seconds(self, kind: Hashable, rows: int) -> float:
        """What a wave of `rows` UNet rows takes."""
        own, per_row = self.fit(kind)
        return own + per_row * self.buckets.padded(rows)

    def enough(self, kind: Hashable, share: float, most: int) -> int:
        """The fewest UNet rows in which the call's own cost is at most this `share` of a wave; `most`, if it takes more.

        Also `most` while waves of one size only are known: smaller ones could be dear.
        """
        own, per_row = self.fit(kind)
        if not self._tells(kind) or own * (1 - share) >= share * per_row * most:
            return most
        return max(1, math.ceil(own * (1 - share) / (share * per_row)))

    def _fit(self, kind: Hashable) -> tuple[float, float]:
        n, rows, squares, seconds, products = self._sums[kind]
        per_row = (n * products - rows * seconds) / (n * squares - rows * rows) if self._tells(kind) else seconds / rows
        per_row = min(max(per_row, 0.0), seconds / rows)
        return max(seconds - per_row * rows, 0.0) / n, per_row  # rounding alone can fall below 0

    def _tells(self, kind: Hashable) -> bool:
        """Whether the sizes of its waves differ enough to tell the call's own cost from its rows'."""
        kind = _counted_as(kind)
        if kind not in self._sums:
            return False
        n, rows, squares, *_ = self._sums[kind]
        return bool(n * squares - rows * rows > 1e-3 * squares * n)


def _counted_as(kind: Hashable) -> Hashable:
    return kind._replace(adapters="any") if isinstance(kind, Need) and kind.adapters else kind
