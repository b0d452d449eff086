"""The table at a glance: rFID against speed-up, a panel for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from benchmarks.paper.differences import RFID
from search_jobs.report.style import FAMILIES, INK, SEARCHED, WIDTH, decades, dress, figure, headline

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
DIGITS = 6  # significant ones, of what is kept


@dataclass(frozen=True)
class Front:
    """A model's panel. rfid: by the kind and the speed-up, as JSON has its keys, that of each search."""

    images: int
    effort: str
    speedups: Sequence[float]
    rfid: Mapping[str, Mapping[str, Sequence[float]]]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Front:
        """What a model's summary says; images that are not finite have no rFID."""
        rfid: dict[str, dict[str, list[float]]] = {}
        for entry in summary["entries"]:
            if found := entry["figures"].get(RFID):
                of_kind = rfid.setdefault(entry["kind"], {})
                of_kind.setdefault(f"{entry['speedup']:g}", []).append(float(f"{found['value']:.{DIGITS}g}"))
        about = summary["about"]
        return cls(about["images"], about["effort"], sorted(summary["speedups"]), rfid)


def kept(path: Path) -> dict[str, Front]:
    """The fronts in a file, by model: none where there is no file."""
    return {model: Front(**front) for model, front in json.loads(path.read_bytes()).items()} if path.is_file() else {}


def keep(path: Path, fronts: Mapping[str, Front]) -> None:
    """Write them: other models' panels are drawn from there when they are not measured again."""
    path.write_text(json.dumps({model: asdict(front) for model, front in fronts.items()}, indent=1) + "\n")


def drawn(fronts: Mapping[str, Front]) -> Figure:
    """Both axes logarithmic; the band of the searches is from the lowest to the highest seed."""
    count = len(fronts)
    columns = count if count <= COLUMNS else 2
    rows = -(-count // columns)
    picture = figure(WIDTH, 0.6 + 3.6 * rows)
    panels = picture.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[count:]:
        unused.remove()
    seen = dict[str, Any]()  # in the legend, of all panels
    for axes, (model, front) in zip(panels[:count], fronts.items(), strict=True):
        for kind, values in front.rfid.items():
            _line(axes, kind, {float(speedup): sorted(of_seeds) for speedup, of_seeds in values.items()})
        handles, labels = axes.get_legend_handles_labels()
        seen |= dict(zip(labels, handles, strict=True))
        axes.set(xscale="log", yscale="log", xlabel="speed-up in MACs")
        dress(axes)
        decades(axes.yaxis)
        axes.xaxis.set_major_locator(FixedLocator(front.speedups))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        rough = ", quick run" if front.effort != "full" else ""
        headline(axes, f"{model} ({front.images} images{rough})")
    for axes in panels[:count:columns]:
        axes.set_ylabel("rFID to the teacher (less is better)")
    kinds = [kind for kind in LOOKS if kind in seen]
    picture.legend(
        [seen[kind] for kind in kinds], kinds, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK
    )
    return picture


def _line(axes: Any, kind: str, values: Mapping[float, Sequence[float]]) -> None:
    """One kind's line through its middle searches, and the band of all. values: ascending, by speed-up."""
    at, own = sorted(values), kind == OURS
    marker, colour = LOOKS[kind]
    middle = [values[speedup][len(values[speedup]) // 2] for speedup in at]
    axes.plot(
        at, middle, marker=marker, c=colour, lw=2.2 if own else 1, ms=11 if own else 5, label=kind, zorder=5 if own else 3
    )
    if any(len(of_seeds) > 1 for of_seeds in values.values()):
        low, high = ([values[speedup][end] for speedup in at] for end in (0, -1))
        axes.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)
