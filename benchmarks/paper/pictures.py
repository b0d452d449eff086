"""The table at a glance: a panel for each model with the front of every kind, and strips of images of the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.paper.contenders import (
    BACK,
    BOTH,
    CORRECTED,
    ENDS,
    FEWER,
    FIRST,
    FRONT,
    OPTIMAL,
    ORDERS,
    OURS,
    PAPER,
    UNEVEN,
    UNEVEN_BLOCKS,
    UNIFORM,
    WHOLE,
)
from benchmarks.paper.differences import PSNR, RFID
from search_jobs.report.style import FAMILIES, HALO, INK, SEARCHED, WIDTH, decades, dress, figure, headline

IMAGES = 2  # of the same noise, in a strip
FRAME = "#d5dae0"
LOOKS = {  # marker and colour of each kind
    FEWER["fewer-step ddim"]: FAMILIES["fewer-step ddim"],
    FEWER["fewer-step euler"]: FAMILIES["fewer-step euler"],
    FEWER["fewer-step dpmsolver++"]: FAMILIES["fewer-step dpmsolver++"],
    UNIFORM: FAMILIES["uniform DeepCache"],
    UNEVEN: FAMILIES["non-uniform DeepCache"],
    FIRST: ("D", "#7f8c3a"),
    FRONT: ("<", "#3f7f6b"),
    BACK: (">", "#4a7d96"),
    ENDS: ("d", "#5f6b2a"),
    WHOLE: ("v", "#a08a4a"),
    UNEVEN_BLOCKS: ("P", "#5f6b2a"),
    BOTH: FAMILIES["cached fewer-step ddim"],
    **dict(zip(ORDERS, (("h", "#a23b5f"), ("H", "#7d2b48")), strict=True)),
    OPTIMAL: ("X", "#8a5a2b"),
    CORRECTED: ("*", "#6fb3bf"),
    PAPER: ("o", "#6b7783"),
    OURS: ("*", SEARCHED),
}
COLUMNS = 3  # panels beside each other; more than so many are two in a row

Summary = Mapping[str, Any]


def front(summaries: Sequence[Summary]) -> Figure:
    """rFID against speed-up, both logarithmic; the band of the searches is from the lowest to the highest seed."""
    count = len(summaries)
    columns = count if count <= COLUMNS else 2
    rows = -(-count // columns)
    picture = figure(WIDTH, 0.6 + 3.6 * rows)
    panels = picture.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[count:]:
        unused.remove()
    seen = dict[str, Any]()  # in the legend, of all panels
    for axes, summary in zip(panels[:count], summaries, strict=True):
        for kind in dict.fromkeys(entry["kind"] for entry in summary["entries"]):
            _line(axes, summary, kind, *LOOKS[kind])
        handles, labels = axes.get_legend_handles_labels()
        seen |= dict(zip(labels, handles, strict=True))
        speedups = sorted(summary["speedups"])
        axes.set(xscale="log", yscale="log", xlabel="speed-up in MACs")
        dress(axes)
        decades(axes.yaxis)
        axes.xaxis.set_major_locator(FixedLocator(speedups))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        rough = ", quick run" if summary["about"]["effort"] != "full" else ""
        headline(axes, f"{summary['about']['model']} ({summary['about']['images']} images{rough})")
    for axes in panels[:count:columns]:
        axes.set_ylabel("rFID to the teacher (less is better)")
    kinds = [kind for kind in LOOKS if kind in seen]
    picture.legend(
        [seen[kind] for kind in kinds], kinds, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK
    )
    return picture


def _line(axes: Any, summary: Summary, kind: str, marker: str, colour: str) -> None:
    """One kind's line, and the band of its searches."""
    values: dict[float, list[float]] = {}
    for entry in summary["entries"]:
        if entry["kind"] == kind and RFID in entry["figures"]:
            values.setdefault(entry["speedup"], []).append(entry["figures"][RFID]["value"])
    at = sorted(values)
    middle = [sorted(values[speedup])[len(values[speedup]) // 2] for speedup in at]
    own = kind == OURS
    axes.plot(
        at, middle, marker=marker, c=colour, lw=2.2 if own else 1, ms=11 if own else 5, label=kind, zorder=5 if own else 3
    )
    if any(len(of_seeds) > 1 for of_seeds in values.values()):
        low, high = ([choose(values[speedup]) for speedup in at] for choose in (min, max))
        axes.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)


def strip(summary: Summary, shown: Path) -> Figure:
    """A column for each speed-up; for each image three rows: the teacher, ours, the best rival there by rFID."""
    with np.load(shown, allow_pickle=False) as kept:
        images = {name: kept[name] for name in kept.files}
    speedups = sorted({entry["speedup"] for entry in summary["entries"]})
    rows = 3 * min(IMAGES, len(images[summary["teacher"]["digest"]]))
    picture = figure(1.05 * max(1, len(speedups)) + 1.1, 1.05 * rows + 0.4)
    grid = picture.subplots(rows, max(1, len(speedups)), squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for column, speedup in enumerate(speedups):
        here = [entry for entry in summary["entries"] if entry["speedup"] == speedup and entry["middle"] and entry["figures"]]
        ours = next((entry for entry in here if entry["kind"] == OURS), None)
        rivals = (entry for entry in here if entry["kind"] not in (CORRECTED, OURS))
        rival = min(rivals, key=lambda entry: float(entry["figures"][RFID]["value"]), default=None)
        for row in range(rows):
            cell, entry = grid[row][column], (None, ours, rival)[row % 3]
            digest = summary["teacher"]["digest"] if row % 3 == 0 else entry["digest"] if entry else None
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(color=FRAME, lw=0.5)  # images may be as white as the page
            if digest in images:
                cell.imshow(images[digest][row // 3], interpolation="nearest")
            if entry and row < 3:
                said, place = f"{entry['figures'][PSNR]['value']:.1f} dB", {"x": 0.04, "y": 0.05, "transform": cell.transAxes}
                cell.text(**place, s=said, fontsize=6.5, color=INK, path_effects=HALO)
        grid[0][column].set_title(f"{speedup:g}×", fontsize=9, color=INK)
    for row in range(rows):
        grid[row][0].set_ylabel(
            ("teacher", "ours", "best rival")[row % 3], rotation=0, ha="right", va="center", fontsize=8.5, color=INK
        )
    return picture
