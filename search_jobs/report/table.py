"""The table of a search: every tier on held-out images, beside the strongest baseline under the same ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from search_jobs.report.aims import Aim, Entry
from search_jobs.report.figures import decimals, figure, interval, steps
from search_jobs.report.run import Run

TITLE = "Held-out: {} images, other prompts and other noise than the search's"


class Line(NamedTuple):
    """A row of a table, as text. kind: `tier` for what was chosen, `hand` for the baseline it is held against."""

    kind: str
    aim: str
    ceiling: str
    schedule: str
    steps: str
    cost: str
    rfid: str
    interval: str
    psnr: str
    clip: str


def lines(aims: Sequence[Aim]) -> list[Line]:
    """Two rows for each aim, or one where the strongest baseline is what was chosen."""
    found = []
    for aim in aims:
        found.append(_line("tier", aim.tier, aim.limit, _title(aim), aim.entry))
        if aim.rival:
            found.append(_line("hand", "by hand", "", aim.rival["baseline"]["name"], aim.rival))
    return found


def table(run: Run) -> Table:
    """For the terminal: fits 110 columns."""
    title = TITLE.format(run.report["config"]["heldout"])
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("tier", "ceiling", "schedule"):
        grid.add_column(column, no_wrap=column != "schedule", overflow="fold")
    for column in ("full/partial\n/null", "cost", "rFID", "95 % interval", "PSNR", "CLIP"):
        grid.add_column(column, justify="right", no_wrap=True)
    for line in lines(run.aims):
        texts = [Text(text) for text in line[1:]]  # not markup: names come from the run
        grid.add_row(*texts, style="bold" if line.kind == "tier" else "dim")
    return grid


def _title(aim: Aim) -> str:
    return f"by hand: {aim.by_hand}" if aim.by_hand else str(aim.entry["digest"][:12])


def _line(kind: str, tier: str, ceiling: str, title: str, entry: Entry) -> Line:
    return Line(kind, tier, ceiling, title, steps(entry["steps"]), *figures(entry["held-out"]))


def figures(held: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """What a row says of a measurement, as text: cost, rFID, its interval, PSNR and CLIP score."""
    first = decimals(held["cost"], 3), figure(held["rfid"]), interval(held, "rfid")
    return (*first, decimals(held["psnr"], 1), decimals(held.get("clip_score"), 1))
