"""The front: what was evaluated on the search's images, and what was chosen on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search_jobs.report.run import FinishedRun
from search_jobs.report.style import FAMILIES, HALO, INK, MUTED, OTHER_FAMILY, SEARCHED, WIDTH, decades, dress, figure, headline
from search_jobs.report.targets import CostTarget, Entry

RUNG_LOOKS = {"screen": ("#d3dbe0", 9), "search": ("#94b8bf", 13), "select": (SEARCHED, 18)}  # colour, size
ASIDE = 1.012  # factor: what costs the same would hide each other's error bars


def front(run: FinishedRun) -> Figure:
    """Left the loss of all that was evaluated by the search, right the held-out rFID of what was chosen."""
    picture = figure(WIDTH, 4.9)
    left, right = picture.subplots(1, 2)
    _searched(left, run)
    _held_out(right, run)
    for axes in (left, right):
        axes.set(xlabel="cost: MACs relative to the teacher", xscale="log", yscale="log")
        dress(axes)
        for axis in (axes.xaxis, axes.yaxis):
            decades(axis)
        axes.margins(x=0.12)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="lower left")
    return picture


def _searched(axes: Axes, run: FinishedRun) -> None:
    report = run.report
    for order, (rung, (colour, size)) in enumerate(RUNG_LOOKS.items()):
        points = [point for point in report["evaluated"] if point["rung"] == rung]
        count = report["config"].get("images" if rung == "search" else rung)
        label = f"searched, {count} images" if rung != "select" else f"searched, {count} more images"
        axes.scatter(*_columns(points), s=size, c=colour, lw=0, label=label, zorder=2 + order)
    best = sorted((p for p in report["evaluated"] if p["digest"] in set(report["front"])), key=lambda p: p["cost"])
    axes.step(*_columns(best), where="post", c=INK, lw=1, label="front", zorder=6)
    hand, images = {entry["digest"]: entry for entry in report["by_hand"]}.values(), report["config"]["images"]
    for family in dict.fromkeys(entry["baseline"]["family"] for entry in hand):
        own = [e["search"] for e in hand if e["baseline"]["family"] == family]
        marker, colour = FAMILIES.get(family, OTHER_FAMILY)
        axes.scatter(
            *_columns(own),
            s=34,
            marker=marker,
            c=colour,
            ec="white",
            lw=0.6,
            label=f"by hand, {images} images: {family}",
            zorder=5,
        )
    known = {entry["digest"]: entry["search"] for entry in hand}
    known |= {point["digest"]: point for point in report["evaluated"]}
    for target in run.targets:
        judged = run.schedule(target.entry)  # before it had corrections for other scales, which have a digest of their own
        if judged and (point := known.get(judged.digest)):
            _star(axes, point["cost"], point["loss"], target)
    headline(axes, "On the search's images")
    axes.set_ylabel("loss: squared feature distance to the teacher")


def _columns(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [point["cost"] for point in points], [point["loss"] for point in points]


def _held_out(axes: Axes, run: FinishedRun) -> None:
    chosen = {target.entry["digest"] for target in run.targets}
    hand = {
        e["digest"]: e for e in [*run.report["by_hand"], *(a.strongest for a in run.targets if a.strongest)] if "held-out" in e
    }
    for entry in hand.values():
        if entry["digest"] not in chosen:
            marker, colour = FAMILIES.get(entry["baseline"]["family"], OTHER_FAMILY)
            error_bar(axes, entry["held-out"]["cost"] * ASIDE, entry["held-out"], marker, colour, 6)
    for target in run.targets:
        held = target.entry["held-out"]
        error_bar(axes, held["cost"] / ASIDE, held, "*", SEARCHED, 13, hollow=bool(target.by_hand))
        _name(axes, held["cost"], held["rfid"], target)
    axes.plot([], [], "*", c=SEARCHED, ms=12, mec="white", label="tier or budget")
    if any(target.by_hand for target in run.targets):
        axes.plot([], [], "*", c="white", ms=12, mew=0.7, mec=SEARCHED, label="tier or budget, set by hand")
    for family in dict.fromkeys(entry["baseline"]["family"] for entry in hand.values()):
        marker, colour = FAMILIES.get(family, OTHER_FAMILY)
        axes.plot([], [], marker, c=colour, ms=6, mec="white", label=f"strongest by hand: {family}")
    headline(axes, f"On {run.report['config']['heldout']} held-out images, with 95 % intervals")
    axes.set_ylabel("rFID to the teacher")


def error_bar(axes: Axes, x: float, measure: Entry, marker: str, colour: str, size: float, hollow: bool = False) -> None:
    """rFID with its interval, where it has one. The interval is of a bootstrap, so the figure may lie outside it."""
    rfid = measure["rfid"]
    low, high = (measure.get("intervals") or {}).get("rfid", (rfid, rfid))
    axes.errorbar(
        [x], [rfid], yerr=[[max(0.0, rfid - low)], [max(0.0, high - rfid)]], fmt=marker, ms=size, color=colour,
        mfc="white" if hollow else colour, mec=colour if hollow else "white", mew=0.7, ecolor=colour, elinewidth=1,
        capsize=2.5, capthick=1, zorder=4,
    )  # fmt: skip


def _star(axes: Axes, x: float, y: float, target: CostTarget) -> None:
    inside, edge = ("white", SEARCHED) if target.by_hand else (SEARCHED, "white")
    axes.scatter([x], [y], marker="*", s=130, c=inside, ec=edge, lw=0.7, zorder=7)
    _name(axes, x, y, target)


def _name(axes: Axes, x: float, y: float, target: CostTarget) -> None:
    colour, size = (INK, 9) if target.tier else (MUTED, 8)
    axes.annotate(
        target.label, (x, y), xytext=(-9, -4), textcoords="offset points", ha="right", va="top",
        color=colour, fontsize=size, path_effects=HALO, zorder=8,
    )  # fmt: skip
