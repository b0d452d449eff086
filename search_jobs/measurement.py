"""The figures of a schedule's images, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.paired import Estimate, Resampled
from search_jobs.config import Mean

NONE = 1e-6  # of how far apart the teacher's own images lie: a smaller squared distance counts as this
RATIOS = ("loss", "rfid", "to_real")  # distances, which compare as ratios; all else compares as a difference
DIGITS = 7  # of a figure of a resample, in the ledger


@dataclass(frozen=True)
class Measurement:
    """The figures of one schedule's images. `loss` is what the search minimises; the others are reported.

    loss: `paired_loss`, of the same noise, so it ranks schedules reliably with far fewer images than a Fréchet distance. rfid:
    Fréchet distance between the candidate's and the teacher's features. psnr: dB, of the mean squared pixel error over all
    images. clip_score: 100 · cosine with the prompt, None without texts. macs: one image, guidance rows included. cost: macs
    relative to the teacher's. `intervals`: 95 % bootstrap intervals over the images, where they were asked for; rfid itself is
    biased upwards for few images. to_real: Fréchet distance to real images, where there are any. accuracy: share of the images
    that a classifier takes for what the prompt names, where the features are a classifier's. resampled: the figures of each
    resample of that bootstrap, by which `against` compares.
    """

    cost: float
    macs: int
    loss: float
    rfid: float
    psnr: float
    clip_score: float | None
    images: int
    intervals: dict[str, tuple[float, float]] | None = None
    to_real: float | None = None
    resampled: dict[str, tuple[float, ...]] | None = None
    accuracy: float | None = None

    def document(self) -> dict[str, Any]:
        """The figures as a JSON object, without those of resamples."""
        figures = asdict(self)
        del figures["resampled"]
        return figures

    def against(self, other: Measurement) -> dict[str, Estimate]:
        """Each distance of this one over the other's, each other figure less the other's, on the same images.

        Empty unless both were resampled.
        """
        estimates: dict[str, Estimate | None] = {}
        for name in (self.resampled or {}).keys() & (other.resampled or {}).keys():
            own, others = self._resampled(name), other._resampled(name)
            estimates[name] = own.over(others) if name in RATIOS else own.less(others)
        return {name: estimate for name, estimate in sorted(estimates.items()) if estimate}

    def _resampled(self, name: str) -> Resampled:
        assert self.resampled is not None
        return Resampled(getattr(self, name), np.array(self.resampled[name]))


def paired_loss(features: NDArray[Any], teachers: NDArray[Any], mean: Mean = "geometric") -> float:
    """The mean squared distance of features (n, d) to the teacher's of the same noise.

    The geometric mean tells how far a typical image lies. In the arithmetic one the few images that became other ones outweigh
    all others, and which those are is chance: a few images rank schedules worse by it (docs/measurements.md).
    """
    distances = ((features - teachers) ** 2).sum(1)
    if mean == "arithmetic":
        return float(distances.mean())
    apart = ((teachers - teachers.mean(0)) ** 2).sum(1).mean()
    return float(np.exp(np.log(np.maximum(distances, max(NONE * apart, np.finfo(np.float64).tiny))).mean()))


def pooled(losses: Sequence[float], images: Sequence[int], mean: Mean = "geometric") -> float:
    """The loss on all images of several samples, from that on each and how many it has."""
    if mean == "arithmetic":
        return float(np.average(losses, weights=images))
    return float(np.exp(np.average(np.log(losses), weights=images)))


def intervals(figures: Mapping[str, Resampled]) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each figure. No distance is below zero."""
    ends = {name: figure.estimate() for name, figure in figures.items()}
    return {name: (max(end.low, 0.0) if name in RATIOS else end.low, end.high) for name, end in ends.items()}


def rounded(figures: Mapping[str, Resampled]) -> dict[str, tuple[float, ...]]:
    """The figures of the resamples, as a measurement keeps them."""
    return {name: tuple(float(f"{value:.{DIGITS}g}") for value in figure.drawn) for name, figure in figures.items()}
