"""The comparison at equal cost: this search, other searches of the model, and every family of baselines, on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search_jobs.report.figures import figure as number
from search_jobs.report.figures import interval
from search_jobs.report.front import error_bar
from search_jobs.report.style import FAMILIES, INK, OTHER_FAMILY, SEARCHED, TWINS, WIDTH, decades, dress, figure
from search_jobs.report.table import Line, figures

SPREAD = 0.7  # of the distance between two budgets: how wide the marks of one budget lie

Measure = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """What one kind of schedule has at each budget, the dearest first; None where it has nothing as cheap."""

    kind: str
    label: str
    marker: str
    colour: str
    measures: Sequence[Measure | None]


@dataclass(frozen=True)
class Comparison:
    """compare.json, turned from budgets to kinds of schedules."""

    budgets: list[float]
    series: list[Series]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Comparison:
        """In the order of the document, but the dearest budget first, as everywhere on the page."""
        order = sorted(range(len(document["budgets"])), key=lambda i: -document["budgets"][i]["relative"])
        budgets = [document["budgets"][i] for i in order]
        series = [Series("tier", "this search", "*", SEARCHED, [budget["searched"] for budget in budgets])]
        for (marker, colour), (name, measures) in zip(cycle(TWINS), document.get("twins", {}).items(), strict=False):
            series.append(Series("twin", f"search {name}", marker, colour, [measures[i] for i in order]))
        for family in dict.fromkeys(family for budget in budgets for family in budget["baselines"]):
            own = [budget["baselines"].get(family) for budget in budgets]
            series.append(Series("hand", family, *FAMILIES.get(family, OTHER_FAMILY), own))
        return cls([budget["relative"] for budget in budgets], series)

    def limits(self) -> list[str]:
        """The budgets as they are written."""
        return [f"≤ {budget:.3g}" for budget in self.budgets]

    def rows(self) -> list[tuple[Series, list[tuple[str, str, bool]]]]:
        """For a table with a column per budget: rFID, its interval, and whether no other series is lower."""
        lowest = [self._lowest(place) for place in range(len(self.budgets))]
        return [(one, [_cell(m, m is not None and m["rfid"] == low) for m, low in zip(one.measures, lowest, strict=True)])
                for one in self.series]  # fmt: skip

    def lines(self) -> list[Line]:
        """For the long table: all that was measured of each."""
        found = []
        for place, limit in enumerate(self.limits()):
            for one in self.series:
                if measure := one.measures[place]:
                    name = measure.get("name") or str(measure.get("digest") or "")[:12]
                    found.append(Line(one.kind, one.label, limit if one.kind == "tier" else "", name, "", *figures(measure)))
        return found

    def _lowest(self, place: int) -> float | None:
        return min((m["rfid"] for one in self.series if (m := one.measures[place])), default=None)


def compare(comparison: Comparison) -> Figure:
    """One group of marks per budget, the dearest first."""
    picture = figure(WIDTH, 4.6)
    axes = picture.subplots()
    for i, one in enumerate(comparison.series):
        _marks(axes, one, SPREAD * ((i + 0.5) / len(comparison.series) - 0.5))
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


def _marks(axes: Axes, one: Series, aside: float) -> None:
    size, hollow = 13 if one.kind == "tier" else 6.5, one.kind == "twin"
    for place, measure in enumerate(one.measures):
        if measure:
            error_bar(axes, place + aside, measure, one.marker, one.colour, size, hollow)
    label = f"by hand: {one.label}" if one.kind == "hand" else one.label
    axes.plot([], [], one.marker, c=one.colour, ms=size, label=label, mfc="white" if hollow else one.colour)


def _cell(measure: Measure | None, lowest: bool) -> tuple[str, str, bool]:
    return (number(measure["rfid"]), interval(measure, "rfid"), lowest) if measure else ("–", "", False)
