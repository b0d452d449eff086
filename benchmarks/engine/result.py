"""What was measured: values that belong together because they are of one moment, and what follows from several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.engine.timing import Spread

RIVALS = ("diffusers, compiled", "diffusers", "Pillow")  # by strength: whom the others are held against
OURS = ("ours, compiled and captured", "ours, captured", "ours, compiled", "ours")  # the first of them is what a server runs


@dataclass(frozen=True)
class BenchmarkResult:
    """One thing that one competitor did, `values` (one for each repeat) in `unit`: seconds unless it says otherwise.

    section, count: the values of one section and one count (of UNet rows or images, as `what` says) were measured side by side.
    macs: of one call, 0 where none are counted. Without values it was not measured, and `note` says why.
    """

    section: str
    what: str
    count: int
    who: str
    values: tuple[float, ...]
    macs: int = 0
    unit: str = "s"
    note: str = ""

    @property
    def spread(self) -> Spread | None:
        """Of the values, where there are any."""
        return Spread.of(self.values) if self.values else None

    @property
    def tflops(self) -> float | None:
        """10¹² floating point operations a second: a multiply-accumulate is two."""
        return 2 * self.macs / self.spread.median / 1e12 if self.spread and self.macs and self.unit == "s" else None

    def over(self, other: BenchmarkResult, per_mac: bool = False) -> Spread:
        """This one's time over another's of the same moment, of equal work if `per_mac`: other MACs are reckoned out."""
        ratio = np.array(self.values) / np.array(other.values)
        return Spread.of(ratio * other.macs / self.macs if per_mac else ratio)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "values": list(self.values), "tflops": self.tflops}


@dataclass
class BenchmarkResults:
    """All results of a run, in the order of measuring."""

    all: list[BenchmarkResult] = field(default_factory=list)

    def __iter__(self) -> Iterator[BenchmarkResult]:
        return iter(self.all)

    def find(self, section: str, what: str, count: int, who: Iterable[str]) -> BenchmarkResult | None:
        """The first of these competitors' that was measured."""
        for name in who:
            for one in self.all:
                if (one.section, one.what, one.count, one.who) == (section, what, count, name) and one.values:
                    return one
        return None

    def rival(self, of: BenchmarkResult) -> BenchmarkResult | None:
        """The strongest that anybody else has for the same, at the same moment; a partial step's is a full one."""
        for what in (of.what, FULL, TEACHER):
            if rival := self.find(of.section, what, of.count, RIVALS):
                return rival if what == of.what or (of.macs and rival.macs) else None
        return None


FULL, TEACHER = "full step", "50 full"  # what everybody can do


def partial_step(branch: int) -> str:
    """How results call a partial step."""
    return f"partial step s={branch}"
