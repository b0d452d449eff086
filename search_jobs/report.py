"""Pictures and a table of a finished search: made from the run folder alone, so they can be made again at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from registry.errors import NotFound

matplotlib.use("agg")  # files only: no display is needed

MARKERS = {"fewer-step dpmsolver++": "s", "fewer-step ddim": "D", "uniform DeepCache": "v", "cached fewer-step": "^"}


def read(folder: Path) -> dict[str, Any]:
    """The run's report. Raises `NotFound` when the search has not finished."""
    path = folder / "report.json"
    if not path.is_file():
        raise NotFound(f"run: {folder} holds no finished search (no report.json); run it again to go on", param="run")
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def write_pictures(report: dict[str, Any], folder: Path) -> list[Path]:
    """pareto.png, samples.png, and samples-TIER.png for every tier. Returns their paths."""
    paths = [_pareto(report, folder / "pareto.png"), _all_tiers(report, folder, folder / "samples.png")]
    return paths + [_one_tier(report, folder, name, folder / f"samples-{name}.png") for name in report["tiers"]]


def table(report: dict[str, Any]) -> Table:
    """Each tier on prompts and noise the search never saw, beside the strongest baseline under the same ceiling."""
    heldout = report["config"]["heldout"]
    grid = Table(title=f"Held-out: {heldout} images, other prompts and other noise than the search's", title_justify="left")
    for column in ("tier", "schedule", "full/partial/null", "cost", "rFID", "PSNR dB", "CLIP score"):
        grid.add_column(column, justify="left" if column in ("tier", "schedule") else "right", no_wrap=column != "schedule")
    for name, tier in report["tiers"].items():
        grid.add_row(f"{name} (≤ {tier['ceiling']:g})", _title(tier), *_figures(tier), style="bold")
        rival = tier["strongest_baseline"]
        if rival and rival["digest"] != tier["digest"]:
            grid.add_row("", f"by hand: {rival['baseline']['name']}", *_figures(rival), style="dim")
    return grid


def _title(entry: dict[str, Any]) -> str:
    by_hand = f" = {entry['baseline']['name']}" if entry["baseline"] else ""
    return entry["digest"][:12] + by_hand


def _figures(entry: dict[str, Any]) -> list[str]:
    steps, held = entry["steps"], entry["held-out"]
    return [
        f"{steps['full']}/{steps['partial']}/{steps['null']}",
        f"{held['cost']:.3f}",
        f"{held['rfid']:.3f}",
        f"{held['psnr']:.2f}",
        f"{held['clip_score']:.2f}",
    ]


def _pareto(report: dict[str, Any], path: Path) -> Path:
    """Left: all that was evaluated, on the search's images. Right: tiers against baselines, on held-out images."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    evaluated = report["evaluated"]
    found = [e["search"] for e in evaluated if not e["baseline"]]
    left.scatter([m["cost"] for m in found], [m["loss"] for m in found], s=16, c="0.7", label="searched")
    for family, marker in MARKERS.items():
        own = [e["search"] for e in evaluated if e["baseline"] and e["baseline"]["family"] == family]
        left.scatter([m["cost"] for m in own], [m["loss"] for m in own], s=36, marker=marker, label=family, alpha=0.8)
    best = sorted((e["search"] for e in evaluated if e["digest"] in report["front"]), key=lambda m: m["cost"])
    left.step([m["cost"] for m in best], [m["loss"] for m in best], where="post", c="k", lw=1, label="Pareto front")
    for name, tier in report["tiers"].items():
        _star(left, tier["search"]["cost"], tier["search"]["loss"], name)
        _star(right, tier["held-out"]["cost"], tier["held-out"]["rfid"], name)
    rivals = [t["strongest_baseline"] for t in report["tiers"].values() if t["strongest_baseline"]]
    for rival in rivals:
        held = rival["held-out"]
        right.scatter(held["cost"], held["rfid"], s=48, marker=MARKERS[rival["baseline"]["family"]], c="tab:blue")
    right.scatter([], [], marker="*", s=140, c="tab:red", label="tier (searched)")
    right.scatter([], [], marker="s", s=48, c="tab:blue", label="strongest baseline under the same ceiling")
    left.set(title=f"Search: {report['config']['images']} images", ylabel="squared feature distance to the teacher's image")
    right.set(title=f"Held-out: {report['config']['heldout']} images", ylabel="rFID to the teacher")
    for axes in (left, right):
        axes.set(xlabel="MACs relative to the teacher", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def _star(axes: Axes, x: float, y: float, name: str) -> None:
    axes.scatter([x], [y], marker="*", s=140, c="tab:red", zorder=3)
    axes.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)


def _all_tiers(report: dict[str, Any], folder: Path, path: Path) -> Path:
    tiers = report["tiers"].items()
    rows = [("teacher\n1.00", "teacher")]
    rows += [(f"{name}\n{t['held-out']['cost']:.2f}\n{t['held-out']['psnr']:.1f} dB", t["digest"]) for name, t in tiers]
    return _grid(report, folder, rows, path)


def _one_tier(report: dict[str, Any], folder: Path, name: str, path: Path) -> Path:
    """The teacher, the tier, and what a user could have set by hand under the same ceiling."""
    tier = report["tiers"][name]
    rows = [("teacher\n1.00", "teacher"), (f"{name}\n{tier['held-out']['cost']:.2f}", tier["digest"])]
    rival = tier["strongest_baseline"]
    if rival and rival["digest"] != tier["digest"]:
        rows.append((f"by hand\n{rival['held-out']['cost']:.2f}", rival["digest"]))
    return _grid(report, folder, rows, path)


def _grid(report: dict[str, Any], folder: Path, rows: Sequence[tuple[str, str]], path: Path) -> Path:
    """One row of images per (label, digest), one column per prompt: the same noise in a column."""
    prompts = report["samples"]["prompts"]
    figure = Figure(figsize=(1.5 * len(prompts) + 1, 1.55 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(prompts), squeeze=False)
    for (label, digest), line in zip(rows, axes, strict=True):
        images = np.load(folder / "samples" / f"{digest}.npy")
        for image, cell in zip(images, line, strict=False):
            cell.imshow(image, interpolation="nearest")
        for cell in line:
            cell.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for prompt, cell in zip(prompts, axes[0], strict=True):
        cell.set_title(prompt, fontsize=8)
    figure.savefig(path, dpi=110)
    return path
