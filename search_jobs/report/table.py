"""The table of a search: every tier on held-out images, beside the strongest baseline under the same ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from registry.commands.display import COMPUTED_STEPS, computed_steps
from search_jobs.report.figures import decimals, figure, interval, macs
from search_jobs.report.run import FinishedRun
from search_jobs.report.targets import CostTarget, Entry

TITLE = "Held-out: {} images, {} than the search's"


class TableLine(NamedTuple):
    """A line of the table, as text. kind: `tier` for what was chosen, `hand` for the baseline it is held against."""

    kind: str
    target: str
    ceiling: str
    schedule: str
    steps: str
    cost: str
    rfid: str
    interval: str
    psnr: str
    clip: str


def lines(run: FinishedRun) -> list[TableLine]:
    """Two lines for each target, or one where the strongest baseline is what was chosen."""
    lines = []
    for target in run.targets:
        lines.append(_line(run, "tier", target.tier, target.limit, _title(target), target.entry))
        if target.rival:
            lines.append(_line(run, "hand", "by hand", "", target.rival["baseline"]["name"], target.rival))
    return lines


def table(run: FinishedRun) -> Table:
    """The table for the terminal; it fits 110 columns."""
    title = TITLE.format(run.report["config"]["heldout"], run.held_out)
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("tier", "ceiling", "schedule"):
        grid.add_column(column, no_wrap=column != "schedule", overflow="fold")
    last = "CLIP" if all(target.entry["held-out"].get("accuracy") is None for target in run.targets) else "accuracy"
    for column in (COMPUTED_STEPS, "cost", "rFID", "95 %\ninterval", "PSNR", last):
        grid.add_column(column, justify="right", no_wrap=True)
    for line in lines(run):
        texts = [Text(text) for text in line[1:]]  # not markup: names come from the run
        grid.add_row(*texts, style="bold" if line.kind == "tier" else "dim")
    return grid


def at_other_scales(run: FinishedRun) -> Table | None:
    """rFID of every tier at the other guidance scales that it holds for, beside its baseline's; None without any."""
    scales = run.report["budgets"][0].get("by_guidance") if run.report["budgets"] else None
    if not scales:
        return None
    config = run.report["config"]
    title = f"rFID at other guidance scales, {min(config['scaled'], config['heldout'])} held-out images: tier / by hand"
    grid = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, min_width=len(title)
    )
    grid.add_column("tier", no_wrap=True)
    for scale in scales:
        grid.add_column(f"{scale['guidance']:g}", justify="right", no_wrap=True)
    for target in run.targets:
        cells = []
        for at in target.entry.get("by_guidance", ()):
            both = (at.get("held-out"), at.get("strongest_baseline"))
            cells.append(" / ".join(figure(held["rfid"]) for held in both if held))
        grid.add_row(Text(target.label), *cells)
    if lost := scales_lost(run):
        said = "; ".join(f"{tier} {', '.join(f'{scale:g}' for scale in scales)}" for tier, scales in lost.items())
        grid.caption, grid.caption_justify = Text(f"Left out of what a tier is validated for: {said}"), "left"
    return grid


def scales_lost(run: FinishedRun) -> dict[str, list[float]]:
    """By tier, the guidance scales that were measured and that its document leaves out; tiers that hold at all are left out."""
    lost = {}
    for target in run.targets:
        validated = target.entry["schedule"].get("validated") or {}
        measured = [at["guidance"] for at in target.entry.get("by_guidance", ())]
        if scales := [scale for scale in measured if scale not in validated.get("guidance", measured)]:
            lost[target.label] = scales
    return lost


def elsewhere(run: FinishedRun, by: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was measured at other sizes or scales: (tier, [(where, rFID and PSNR there / by hand)]).

    by: `by_size`, `by_guidance`.
    """
    rows, lost = [], scales_lost(run)
    for target in run.targets:
        cells = []
        for at in target.entry.get(by, ()):
            held = [figures for name in ("held-out", "strongest_baseline") if (figures := at.get(name))]
            where = at["size"] if by == "by_size" else f"{at['guidance']:g}"
            left_out = by == "by_guidance" and at["guidance"] in lost.get(target.label, ())
            figures = " / ".join(f"{figure(one['rfid'])}, {decimals(one['psnr'], 1)} dB" for one in held)
            cells.append((where, figures + " (not validated)" * left_out))
        if cells:
            rows.append((target.label, cells))
    return rows


def speed(run: FinishedRun) -> str | None:
    """How fast the images of each stage were made and measured, in one line; None where nothing says it."""
    stages = run.report.get("throughput", {})
    if not stages:
        return None
    rates = ", ".join(f"{name} {figure(stage['images_per_second'])}" for name, stage in stages.items())
    seconds = sum(stage["seconds"] for stage in stages.values())
    work = sum(stage["macs_per_second"] * stage["seconds"] for stage in stages.values())
    return f"images a second: {rates}; {macs(work / seconds)} of the UNet a second"


def _title(target: CostTarget) -> str:
    return f"by hand: {target.by_hand}" if target.by_hand else str(target.entry["digest"][:12])


def _line(run: FinishedRun, kind: str, tier: str, ceiling: str, title: str, entry: Entry) -> TableLine:
    steps = computed_steps(entry["steps"], run.teacher_steps)
    return TableLine(kind, tier, ceiling, title, steps, *figures(entry["held-out"]))


def figures(held: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """A measurement as the table shows it: cost, rFID, its interval, PSNR and CLIP score, or the accuracy in its place."""
    first = decimals(held["cost"], 3), figure(held["rfid"]), interval(held, "rfid")
    accuracy = held.get("accuracy")
    last = decimals(held.get("clip_score"), 1) if accuracy is None else f"{100 * accuracy:.0f} %"
    return (*first, decimals(held["psnr"], 1), last)
