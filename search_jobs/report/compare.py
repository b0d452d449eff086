"""The comparison at equal cost: this search, other searches of the model, and every family of baselines, on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search_jobs.report.figures import estimate, interval
from search_jobs.report.figures import figure as number
from search_jobs.report.front import error_bar
from search_jobs.report.style import FAMILIES, INK, OTHER_FAMILY, SEARCHED, STUDENTS, TWINS, WIDTH, decades, dress, figure
from search_jobs.report.table import TableLine, figures
from search_jobs.report.targets import Entry

SPREAD = 0.7  # of the distance between two budgets: how wide the marks of one budget lie


@dataclass(frozen=True)
class Series:
    """What one kind of schedule has at each budget, the dearest first; None where it has nothing as cheap."""

    kind: str
    label: str
    marker: str
    colour: str
    entries: Sequence[Entry | None]


@dataclass(frozen=True)
class EqualCostComparison:
    """compare.json, turned from budgets to kinds of schedules."""

    budgets: list[float]
    series: list[Series]
    rivals: Sequence[Entry] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> EqualCostComparison:
        """Turn a document of `search_jobs.compare`. Its order stays, but the dearest budget comes first."""
        order = sorted(range(len(document["budgets"])), key=lambda i: -document["budgets"][i]["relative"])
        budgets = [document["budgets"][i] for i in order]
        series = [Series("tier", "this search", "*", SEARCHED, [budget["searched"] for budget in budgets])]
        for (marker, colour), (name, entries) in zip(cycle(TWINS), document.get("twins", {}).items(), strict=False):
            series.append(Series("twin", f"search {name}", marker, colour, [entries[i] for i in order]))
        for (marker, colour), rival in zip(cycle(STUDENTS), document.get("rivals", ()), strict=False):
            affords = [rival if rival["cost"] <= budget["relative"] else None for budget in budgets]
            series.append(Series("rival", title(rival), marker, colour, affords))
        for family in dict.fromkeys(family for budget in budgets for family in budget["baselines"]):
            own = [budget["baselines"].get(family) for budget in budgets]
            series.append(Series("hand", family, *FAMILIES.get(family, OTHER_FAMILY), own))
        return cls([budget["relative"] for budget in budgets], series, document.get("rivals", ()))

    def limits(self) -> list[str]:
        """The budgets as text, such as "≤ 0.2"."""
        return [f"≤ {budget:.3g}" for budget in self.budgets]

    def cells(self) -> list[tuple[Series, list[tuple[str, str, str, bool]]]]:
        """A table with a column per budget: rFID, its interval, the searched one over it, and whether no other is lower."""
        lowest = [self._lowest(place) for place in range(len(self.budgets))]
        return [
            (series, [_cell(entry, low) for entry, low in zip(series.entries, lowest, strict=True)]) for series in self.series
        ]

    def lines(self) -> list[TableLine]:
        """The long table: every schedule with all that was measured of it."""
        lines = []
        for place, limit in enumerate(self.limits()):
            for series in self.series:
                if (entry := series.entries[place]) and series.kind != "rival":
                    name = entry.get("name") or str(entry.get("digest") or "")[:12]
                    ceiling = limit if series.kind == "tier" else ""
                    lines.append(TableLine(series.kind, series.label, ceiling, name, "", *figures(entry)))
        return lines + [TableLine("rival", "other model", "", title(rival), "", *figures(rival)) for rival in self.rivals]

    def _lowest(self, place: int) -> float | None:
        return min((entry["rfid"] for series in self.series if (entry := series.entries[place])), default=None)


def title(entry: Mapping[str, Any]) -> str:
    """What a rival is called in tables: its model and what it was drawn with."""
    steps = f"{entry['steps']} step{'s' * (entry['steps'] > 1)} {entry['solver']}"
    return f"{entry['name']}, {steps}" + (f", guidance {entry['guidance']:g}" if entry["guidance"] > 1 else "")


def compare(comparison: EqualCostComparison) -> Figure:
    """One group of marks per budget, the dearest first."""
    picture = figure(WIDTH, 4.6)
    axes = picture.subplots()
    for i, series in enumerate(comparison.series):
        _marks(axes, series, SPREAD * ((i + 0.5) / len(comparison.series) - 0.5))
    count = len(comparison.budgets)
    for place in range(1, count):
        axes.axvline(place - 0.5, c="#d5dbe0", lw=0.8)
    axes.set(ylabel="rFID to the teacher, held-out", yscale="log", xlim=(-0.5, count - 0.5))
    dress(axes)
    axes.grid(visible=False, axis="x")
    decades(axes.yaxis)
    axes.set_xticks(range(count), [f"cost {limit}" for limit in comparison.limits()], color=INK, fontsize=9.5)
    axes.tick_params(axis="x", length=0)
    picture.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    return picture


def _marks(axes: Axes, series: Series, aside: float) -> None:
    size, hollow = 13 if series.kind == "tier" else 6.5, series.kind == "twin"
    for place, entry in enumerate(series.entries):
        if entry:
            error_bar(axes, place + aside, entry, series.marker, series.colour, size, hollow)
    label = f"by hand: {series.label}" if series.kind == "hand" else series.label
    axes.plot([], [], series.marker, c=series.colour, ms=size, label=label, mfc="white" if hollow else series.colour)


def _cell(entry: Entry | None, lowest: float | None) -> tuple[str, str, str, bool]:
    if entry is None:
        return "–", "", "", False
    ratio = estimate(entry.get("searched_against_this", {}).get("rfid"))
    return number(entry["rfid"]), interval(entry, "rfid"), ratio, entry["rfid"] == lowest
