"""python -m benchmarks.paired_alarms: false alarms of a candidate's report under continuous peeking, by simulation.

Each simulated shadow makes pairs of images without any difference on average, and is looked at after each of them, from
`pairs.FEW` on. The figures of docs/experiments.md come from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from registry.commands.command_line import run_command
from server.experiments.analysis.pairs import ALPHA, FEW, RESOLUTION, Figure
from server.experiments.analysis.statistics import Array, Moments, half_width, mean

IMAGES = 2000
Pairs = Callable[[np.random.Generator], tuple[Array, Array]]
"""The figures of the same images by what the tier means and by the candidate, each (IMAGES,)."""


def differing(spread: Callable[[np.random.Generator], Array]) -> Pairs:
    """PSNR: images differ by 4 dB (standard deviation), and within each pair by the spread."""

    def pairs(dice: np.random.Generator) -> tuple[Array, Array]:
        active = 22 + 4 * dice.normal(size=IMAGES)
        return active, active + spread(dice)

    return pairs


def factors(cv: float, slow: float = 0.0) -> Pairs:
    """Seconds or distances: of variation 0.5 between images, and of this one between the two sides of a pair; all lognormal.

    slow: the share of images, on either side, that something else on the machine makes three times as slow.
    """
    own, wide = math.sqrt(math.log1p(cv**2)), math.sqrt(math.log1p(0.25))

    def side(dice: np.random.Generator) -> Array:
        return dice.lognormal(-(own**2) / 2, own, IMAGES) * np.where(dice.random(IMAGES) < slow, 3.0, 1.0)

    def pairs(dice: np.random.Generator) -> tuple[Array, Array]:
        image = dice.lognormal(-(wide**2) / 2, wide, IMAGES)
        return image * side(dice), image * side(dice)

    return pairs


KINDS: tuple[tuple[str, Figure, Pairs], ...] = (
    ("PSNR, normal, 1 dB", "psnr", differing(lambda dice: dice.normal(size=IMAGES))),
    ("PSNR, normal, 4 dB", "psnr", differing(lambda dice: 4 * dice.normal(size=IMAGES))),
    ("PSNR, Student's t of 3 degrees, 1 dB", "psnr", differing(lambda dice: dice.standard_t(3, IMAGES) / math.sqrt(3))),
    ("PSNR, exponential, 1 dB", "psnr", differing(lambda dice: dice.exponential(size=IMAGES) - 1)),
    ("ratio, CV 0.1", "seconds", factors(0.1)),
    ("ratio, CV 0.5", "seconds", factors(0.5)),
    ("ratio, CV 0.1, one image in 50 three times as slow", "seconds", factors(0.1, 0.02)),
)


def alarm_shares(figure: Figure, pairs: Pairs, shadows: int, seed: int = 0, few: int = FEW) -> tuple[float, float]:
    """Shares of shadows in which some look found a difference: by our interval, and by an ordinary one of 95 %."""
    dice, found = np.random.default_rng(seed), np.zeros(2)
    for _ in range(shadows):
        value, variance, nothing = _so_far(figure, *pairs(dice))
        widths = half_width(variance, RESOLUTION[figure], ALPHA), 1.96 * np.sqrt(variance)
        found += [bool((np.abs(value - nothing) > width)[few - 1 :].any()) for width in widths]
    ours, ordinary = found / shadows
    return float(ours), float(ordinary)


def _so_far(figure: Figure, active: Array, candidate: Array) -> tuple[Array, Array, float]:
    """The estimate and its variance after each image, and what it is without any difference; of ratios, the logarithm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if figure == "psnr":
            value, variance = mean(_moments(np.ones_like(active), candidate - active))
            return value, variance, 0.0
        value, variance = mean(_moments(active, candidate))
        return np.log(value), variance / value**2, 0.0


def _moments(n: Array, s: Array) -> Moments:
    return Moments(*(np.cumsum(x) for x in (np.ones_like(n), n, s, n * n, s * s, n * s)))


def main(
    shadows: Annotated[int, typer.Option(min=1, help="Simulated shadows of each kind.")] = 2000,
    seed: Annotated[int, typer.Option(help="The seed of all random numbers.")] = 0,
) -> None:
    """False alarms of paired intervals under continuous peeking. Half a minute."""
    title = f"{shadows} shadows of {IMAGES} images each, looked at after each image from {FEW} on"
    table = Table("pairs without a difference", "sequence", "ordinary 95 %", title=title)
    for name, figure, pairs in KINDS:
        table.add_row(name, *(f"{share:.2%}" for share in alarm_shares(figure, pairs, shadows, seed)))
    Console(width=120).print(table)


if __name__ == "__main__":
    run_command(main)
