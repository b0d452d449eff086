"""The results of a run: a file that is whole at any moment, and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engine.goals import judged
from benchmarks.engine.result import BenchmarkResult, BenchmarkResults
from registry.files import replace_file

WIDTH = 160


@dataclass
class BenchmarkReport:
    """What was measured on what (`about`), and how each section ended. `out` is written anew after each result."""

    about: Mapping[str, Any]
    device: str
    out: Path | None = None
    results: BenchmarkResults = field(default_factory=BenchmarkResults)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, result: BenchmarkResult) -> None:
        """One more result."""
        self.results.all.append(result)
        self.save()

    def end(self, section: str, seconds: float, fault: str) -> None:
        """A section is over; `fault` says why before its time, if so."""
        self.sections[section] = {"seconds": round(seconds, 1), "fault": fault}
        self.save()

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.out is not None:
            replace_file(self.out, (json.dumps(self.document(), indent=1) + "\n").encode())

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        results = [one.document() for one in self.results]
        goals = [one.document() for one in judged(self.results, self.device)]
        return {**self.about, "sections": self.sections, "results": results, "goals": goals}

    def print(self) -> None:
        """Tables: one for each section, and the goals."""
        console = Console(width=WIDTH)
        console.print(", ".join(f"{name} {value}" for name, value in self.about.items()))
        for section, results in groupby(self.results, key=lambda one: one.section):
            console.print(self._table(section, list(results)))
        for section, end in self.sections.items():
            if end["fault"]:
                console.print(f"{section}: {end['fault']}")
        for card in (False, True):
            console.print(self._goals(card))

    def _table(self, section: str, results: list[BenchmarkResult]) -> Table:
        """A rule between two groups, whose values are of one moment."""
        table = Table(title=section)
        for column in ("what", "rows, images", "who", "median", "10–90 %", "× rival a MAC", "TFLOP/s", "note"):
            table.add_column(column, justify="left" if column in ("what", "who", "note") else "right", overflow="fold")
        for i, one in enumerate(results):
            rival = self.results.rival(one) if one.unit == "s" and one.values else None
            ratio = "" if rival is None or rival is one else f"{one.over(rival, per_mac=bool(one.macs)).median:.2f}"
            in_group = i and results[i - 1].count == one.count
            last = bool(in_group and i + 1 < len(results) and results[i + 1].count != one.count)
            tflops = f"{one.tflops:.3g}" if one.tflops else ""
            table.add_row(one.what, str(one.count), one.who, *_shown(one), ratio, tflops, one.note, end_section=last)
        return table

    def _goals(self, card: bool) -> Table:
        """Those for any device, or those for a card and a model."""
        table = Table(title="goals of an H100 with Stable Diffusion v1.5's sizes in float16" if card else "goals anywhere")
        for column in ("what", "goal", "measured", ""):
            table.add_column(column, justify="right" if column in ("goal", "measured") else "left", overflow="fold")
        for one in judged(self.results, self.device):
            if one.goal.card == card:
                value = "–" if one.value is None else f"{one.value:.3g}"
                table.add_row(one.goal.what, f"{'≤' if one.goal.at_most else '≥'} {one.goal.bound:g}", value, one.said)
        return table


def _shown(one: BenchmarkResult) -> tuple[str, str]:
    """Median and spread, as a table shows them."""
    if one.spread is None:
        return "–", ""
    factor, unit = (1e3, "ms") if one.unit == "s" else (1, one.unit)
    median, low, high = (f"{factor * value:.4g}" for value in (one.spread.median, one.spread.low, one.spread.high))
    return f"{median} {unit}".strip(), f"{low}–{high}" if one.spread.count > 1 else ""
