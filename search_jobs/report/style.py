"""One look for all pictures: few colours that mean the same everywhere, thin lines, no frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

matplotlib.use("agg")  # files only: no display is needed

INK, MUTED, RULE = "#1f2933", "#6b7783", "#e3e7eb"
SEARCHED, BY_HAND = "#0f6b7c", "#c06a35"
FAMILIES = {  # (marker, colour): how a family is cached is its marker, its solver the colour
    "fewer-step ddim": ("s", "#c98b3c"),
    "fewer-step euler": ("s", "#c98b3c"),  # where it is the plain one, as DDIM is of others
    "fewer-step dpmsolver++": ("s", "#8a5a9e"),
    "cached fewer-step ddim": ("^", "#c06a35"),
    "cached fewer-step euler": ("^", "#c06a35"),
    "cached fewer-step dpmsolver++": ("^", "#6b4a86"),
    "uniform DeepCache": ("D", "#7f8c3a"),
    "non-uniform DeepCache": ("P", "#5f6b2a"),
    "uniform caching": ("D", "#7f8c3a"),  # the same two of a transformer
    "non-uniform caching": ("P", "#5f6b2a"),
}
OTHER_FAMILY = ("X", "#8d6e63")  # of a later version
WIDTH, DPI = 10.25, 180  # inches as wide as the page's column, so that text has its size there
TWINS = (("o", "#6b7783"), ("d", "#8d99a4"), ("h", "#4f5a65"), ("<", "#a3adb6"))  # other searches, in this order
STUDENTS = (("v", "#a23b5f"), ("^", "#c2738d"), (">", "#7d2b48"))  # other models, in this order
HALO = [withStroke(linewidth=3, foreground="white")]  # text over marks stays readable


def figure(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress(axes: Axes, grid: bool = True) -> None:
    """Thin grey axes without a frame; a grid below the marks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(which="both", colors=MUTED, labelsize=8.5)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)
    if grid:
        axes.grid(color=RULE, lw=0.6)
        axes.set_axisbelow(True)


def decades(axis: Axis) -> None:
    """Label a logarithmic axis 0.1, 0.2, 0.5, 1, …"""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def headline(axes: Axes, text: str) -> None:
    """Set a title above the axes, at the left, where reading begins."""
    axes.set_title(text, loc="left", color=INK, fontsize=10.5, pad=10)


def save(picture: Figure, path: Path) -> Path:
    """Write a PNG. Prompts may be in scripts that the font lacks: boxes in a picture, not a warning a letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        picture.savefig(path, dpi=DPI)
    return path
