"""Grids of sample images: one line per schedule, one column per prompt, the same noise in a column."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten, wrap
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.cells import cell_len

from search_jobs.report.run import FinishedRun
from search_jobs.report.style import INK, figure
from search_jobs.report.targets import CostTarget, Entry

CELL = 1.16  # inches
TITLE_WIDTH, TITLE_LINES = 16, 3  # of a column's prompt, in letters and lines


class SampledSchedule(NamedTuple):
    """A line of a grid: whose images it shows (a digest, or `teacher`), and the text beside them."""

    name: str
    figures: str
    digest: str


def all_targets(run: FinishedRun) -> Figure:
    """The teacher and every tier."""
    return _grid(run, [TEACHER, *(_sampled(target.label, target.entry) for target in run.shown)])


def one_target(run: FinishedRun, target: CostTarget) -> Figure:
    """The teacher, the tier, and what a user could have set by hand under the same ceiling."""
    name = f"{target.label} (by hand)" if target.by_hand else target.label
    rival = [_sampled("by hand", target.rival)] if target.rival else []
    return _grid(run, [TEACHER, _sampled(name, target.entry), *rival])


TEACHER = SampledSchedule("teacher", "cost 1", "teacher")


def _sampled(name: str, entry: Entry) -> SampledSchedule:
    held = entry["held-out"]
    return SampledSchedule(name, f"cost {held['cost']:.3f}\n{held['psnr']:.1f} dB", entry["digest"])


def _grid(run: FinishedRun, schedules: Sequence[SampledSchedule]) -> Figure:
    titles = [_title(text) for text in run.columns()]
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    kept = [(schedule, images) for schedule in schedules if (images := run.images(schedule.digest)) is not None]
    picture = figure(CELL * len(titles) + 0.9, CELL * max(1, len(kept)) + 0.17 * lines + 0.1)
    if not kept or not titles:
        return picture
    grid = picture.subplots(len(kept), len(titles), squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for (schedule, images), cells in zip(kept, grid, strict=True):
        for cell in cells:
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        for image, cell in zip(images, cells, strict=False):
            cell.imshow(image, interpolation="nearest")
        cells[0].set_ylabel(f"{schedule.name}\n{schedule.figures}", rotation=0, ha="right", va="center", fontsize=9, color=INK)
    for title, cell in zip(titles, grid[0], strict=True):
        cell.set_title(title, fontsize=8.5, color=INK, parse_math=False)
    return picture


def _title(text: str) -> str:
    width = TITLE_WIDTH if cell_len(text) == len(text) else TITLE_WIDTH // 2  # some scripts have letters twice as wide
    lines = wrap(shorten(text, width * TITLE_LINES, placeholder=" …"), width)
    return "\n".join(lines[:TITLE_LINES])
