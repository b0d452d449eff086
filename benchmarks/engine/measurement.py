"""One result of a benchmark, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.engine.timing import Spread


@dataclass(frozen=True)
class BenchmarkResult:
    """One result: what was measured, in which `unit` (× for a ratio), and the goal for its median, at most or at least.

    Without a spread it was not measured, and `note` says why.
    """

    section: str
    what: str
    spread: Spread | None
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None without a goal or a spread."""
        if self.spread is None or (self.at_most is None and self.at_least is None):
            return None
        low = self.at_least is None or self.spread.median >= self.at_least
        return low and (self.at_most is None or self.spread.median <= self.at_most)

    @property
    def goal(self) -> str:
        """The goal as a table shows it, empty without one."""
        if self.at_most is not None:
            return f"≤ {self.at_most}"
        return "" if self.at_least is None else f"≥ {self.at_least}"


def print_table(about: Mapping[str, object], measurements: Sequence[BenchmarkResult]) -> None:
    """Print all measurements, a rule between two sections; `about` (what was measured on what) is the title."""
    table = Table(title=", ".join(f"{name} {value}" for name, value in about.items()))
    for column in ("what", "median", "10–90 %", "goal", "", "note"):
        table.add_column(column, justify="right" if column in ("median", "10–90 %", "goal") else "left", overflow="fold")
    for i, measurement in enumerate(measurements):
        spread, unit = measurement.spread, measurement.unit
        values = ("–", "") if spread is None else (f"{spread.median:.3f} {unit}", f"{spread.low:.3f}–{spread.high:.3f}")
        met = {None: "", True: "met", False: "missed"}[measurement.met]
        last = i + 1 == len(measurements) or measurements[i + 1].section != measurement.section
        table.add_row(measurement.what, *values, measurement.goal, met, measurement.note, end_section=last)
    Console(width=160).print(table)
