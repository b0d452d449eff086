"""Schedules drawn as strips, from noise to image: what each step of the trajectory computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from registry.schedule import Blocks, Branch, Kind, Schedule
from search_jobs.report.run import FinishedRun
from search_jobs.report.style import INK, MUTED, RULE, WIDTH, figure
from search_jobs.report.targets import CostTarget, Entry

TRAINED = 1000  # noise levels that diffusers' models are trained on
HEAD = 0.0125  # of the axis: the coloured part of a computed step, however far the solver jumps after it
FULL, NULL = "#0d3f4b", "#f0f3f5"
BRANCHES = LinearSegmentedColormap.from_list("branches", ["#bcdcdf", "#3f93a1"])
HEIGHT, LINE = 0.42, 0.4  # of a strip, and of the line of guidance factors above it
CLOSE, APART = 0.78, 1.42  # distance of a strip from the one above: a baseline's to its tier, a tier's to the tier before
CROWDED = 150  # cells, beyond which the lines between them would cover them


class StepCell(NamedTuple):
    """One step of the trajectory. It begins at its own place and ends at the next step's; 0 is noise, 1 the image."""

    kind: Kind
    branch: Branch
    start: float
    end: float


class Strip(NamedTuple):
    """A schedule drawn as a strip, and the text beside it. chosen: it is a tier's, not the baseline below."""

    name: str
    below: str
    schedule: Schedule
    entry: Entry
    chosen: bool


def cells(schedule: Schedule) -> list[StepCell]:
    """One cell per step: at its true timestep where the schedule has timesteps of its own, else evenly.

    Only computed steps have timesteps; null steps lie evenly between them.
    """
    trajectory = list(schedule.steps())
    starts = [step.index / len(trajectory) for step in trajectory]
    if schedule.timesteps is not None:
        computed = [step.index for step in trajectory if step.kind != "null"]
        trained = max(TRAINED, schedule.timesteps[0] + 1)
        places = [1 - (timestep + 1) / trained for timestep in schedule.timesteps]
        starts = [float(x) for x in np.interp(range(len(trajectory)), [*computed, len(trajectory)], [*places, 1.0])]
    return [StepCell(s.kind, s.branch, *ends) for s, ends in zip(trajectory, pairwise([*starts, 1.0]), strict=True)]


def strips(run: FinishedRun) -> Figure:
    """Each tier, and below it the strongest baseline under the same ceiling."""
    drawn = list(_strips_of(run))
    tops = [-y for y in accumulate(APART if strip.chosen else CLOSE for strip in drawn)]
    picture = figure(WIDTH, 0.9 - 0.56 * min(tops, default=0))
    axes = picture.subplots()
    used = sorted({branch for strip in drawn for branch in strip.schedule.branches})
    branches = max(map(depth, used), default=1)
    factors = _factor_range(drawn)
    for strip, top in zip(drawn, tops, strict=True):
        _draw(axes, strip, top, branches, run.teacher_steps)
        if strip.schedule.corrections:
            _factors(axes, strip.schedule, top + HEIGHT + 0.1, factors)
    axes.set_xlim(-0.005, 1.005)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["noise", "¼", "½", "¾", "image"], color=MUTED, fontsize=9)
    axes.tick_params(length=0)
    legend = [Patch(fc=FULL, label="full step")]
    legend += [Patch(fc=colour("partial", b, branches), label=f"partial, branch {b}") for b in used]
    legend.append(Patch(fc=NULL, ec="#c9d0d6", lw=0.6, label="null: nothing computed"))
    picture.legend(handles=legend, loc="outside upper left", ncols=len(legend), frameon=False, fontsize=9, labelcolor=INK)
    return picture


def colour(kind: Kind, branch: Branch, branches: int) -> str:
    """Darker where more of the network is computed; `branches` is the most, as `depth` says it."""
    if kind == "partial":
        return to_hex(BRANCHES(1.0 if branches <= 1 else max(depth(branch) - 1, 0) / (branches - 1)))
    return FULL if kind == "full" else NULL


def depth(branch: Branch) -> int:
    """How much of the network a branch computes: of a UNet its number, of a transformer its blocks."""
    return branch.computed if isinstance(branch, Blocks) else branch


def _strips_of(run: FinishedRun) -> list[Strip]:
    drawn = []
    for target in run.shown:
        own, rival = run.schedule(target.entry), target.rival and run.schedule(target.rival)
        if own:
            drawn.append(Strip(target.label, _below(target), own, target.entry, True))
        if rival and target.rival:
            drawn.append(Strip("by hand", target.rival["baseline"]["name"], rival, target.rival, False))
    return drawn


def _below(target: CostTarget) -> str:
    if target.by_hand:
        return f"by hand: {target.by_hand}"
    return target.limit if target.tier else "searched"


def _draw(axes: Axes, strip: Strip, y: float, branches: int, teacher_steps: int) -> None:
    steps_drawn = cells(strip.schedule)
    apart = len(steps_drawn) <= CROWDED
    spans = [(cell.start, cell.end - cell.start) for cell in steps_drawn]
    axes.broken_barh(spans, (y, HEIGHT), facecolors=NULL, edgecolors="white", lw=0.8 * apart)
    heads = [cell for cell in steps_drawn if cell.kind != "null"]
    colours = [colour(cell.kind, cell.branch, branches) for cell in heads]
    axes.broken_barh(
        [(c.start, min(HEAD, c.end - c.start)) for c in heads],
        (y, HEIGHT),
        facecolors=colours,
        edgecolors="white",
        lw=0.5 * apart,
    )
    middle = y + HEIGHT / 2
    _text(axes, -0.012, middle + 0.16, strip.name, "right", bold=strip.chosen)
    _text(axes, -0.012, middle - 0.2, strip.below, "right", quiet=True)
    held, steps = strip.entry["held-out"], f"{strip.schedule.computed} of {teacher_steps} steps"
    _text(axes, 1.012, middle + 0.16, f"cost {held['cost']:.3f}", "left", bold=strip.chosen)
    _text(axes, 1.012, middle - 0.2, f"{steps}, {strip.schedule.solver.name}", "left", quiet=True)


def _text(axes: Axes, x: float, y: float, text: str, align: str, bold: bool = False, quiet: bool = False) -> None:
    axes.text(
        x, y, text, ha=align, va="center", fontsize=8 if quiet else 9.5, color=MUTED if quiet else INK,
        fontweight="bold" if bold else "normal", parse_math=False, clip_on=False,
    )  # fmt: skip


def _factor_range(drawn: Sequence[Strip]) -> tuple[float, float]:
    """The smallest and the largest guidance factor that is drawn, with 1 between: one scale for all strips."""
    factors = [1.0] + [c.guidance for strip in drawn for c in strip.schedule.corrections or ()]
    return min(factors), max(factors)


def _factors(axes: Axes, schedule: Schedule, y: float, factors: tuple[float, float]) -> None:
    """A line of the guidance factor of each computed step; the hairline is a factor of 1."""
    low, high = factors
    if high - low < 1e-6:
        return
    places = [cell.start + HEAD / 2 for cell in cells(schedule) if cell.kind != "null"]
    values = [correction.guidance for correction in schedule.corrections or ()]
    at = [y + LINE * (value - low) / (high - low) for value in values]
    axes.plot([0, 1], [y + LINE * (1 - low) / (high - low)] * 2, c=RULE, lw=0.8, zorder=1)
    axes.plot(places, at, c="#c06a35", lw=1, marker="o", ms=2.2, zorder=3)
    for i, side in ((0, "left"), (-1, "left")):
        axes.annotate(
            f"×{values[i]:.2f}", (places[i], at[i]), xytext=(4, 1), textcoords="offset points",
            fontsize=6.5, color="#c06a35", ha=side, va="bottom",
        )  # fmt: skip
