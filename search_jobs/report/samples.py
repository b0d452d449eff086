"""Grids of samples: one row of images per schedule, one column per prompt, the same noise in a column."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten, wrap
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.cells import cell_len

from search_jobs.report.aims import Aim, Entry
from search_jobs.report.run import Run
from search_jobs.report.style import INK, figure

CELL = 1.16  # inches
TITLE_WIDTH, TITLE_LINES = 16, 3  # of a column's prompt, in letters and lines


class Row(NamedTuple):
    """The images of a digest, or of `teacher`, and what stands beside them."""

    name: str
    figures: str
    digest: str


def all_aims(run: Run) -> Figure:
    """The teacher and every tier."""
    return _grid(run, [TEACHER, *(_row(aim.label, aim.entry) for aim in run.shown)])


def one_aim(run: Run, aim: Aim) -> Figure:
    """The teacher, the tier, and what a user could have set by hand under the same ceiling."""
    name = f"{aim.label} (by hand)" if aim.by_hand else aim.label
    rival = [_row("by hand", aim.rival)] if aim.rival else []
    return _grid(run, [TEACHER, _row(name, aim.entry), *rival])


TEACHER = Row("teacher", "cost 1", "teacher")


def _row(name: str, entry: Entry) -> Row:
    held = entry["held-out"]
    return Row(name, f"cost {held['cost']:.3f}\n{held['psnr']:.1f} dB", entry["digest"])


def _grid(run: Run, rows: Sequence[Row]) -> Figure:
    titles = [_title(text) for text in run.columns()]
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    kept = [(row, images) for row in rows if (images := run.images(row.digest)) is not None]
    picture = figure(CELL * len(titles) + 0.9, CELL * max(1, len(kept)) + 0.17 * lines + 0.1)
    if not kept or not titles:
        return picture
    grid = picture.subplots(len(kept), len(titles), squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for (row, images), cells in zip(kept, grid, strict=True):
        for cell in cells:
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        for image, cell in zip(images, cells, strict=False):
            cell.imshow(image, interpolation="nearest")
        cells[0].set_ylabel(f"{row.name}\n{row.figures}", rotation=0, ha="right", va="center", fontsize=9, color=INK)
    for title, cell in zip(titles, grid[0], strict=True):
        cell.set_title(title, fontsize=8.5, color=INK, parse_math=False)
    return picture


def _title(text: str) -> str:
    width = TITLE_WIDTH if cell_len(text) == len(text) else TITLE_WIDTH // 2  # some scripts have letters twice as wide
    lines = wrap(shorten(text, width * TITLE_LINES, placeholder=" …"), width)
    return "\n".join(lines[:TITLE_LINES])
