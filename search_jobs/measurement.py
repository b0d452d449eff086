"""The figures of a schedule's images, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200  # of the bootstrap


@dataclass(frozen=True)
class Measurement:
    """The figures of one schedule's images. `loss` is what the search minimises; the others are reported.

    loss: mean squared feature distance to the teacher's image of the same noise; paired, so it ranks schedules reliably with
    far fewer images than a Fréchet distance. rfid: Fréchet distance between the candidate's and the teacher's features. psnr:
    dB, of the mean squared pixel error over all images. clip_score: 100 · cosine with the prompt, None without texts. macs: one
    image, guidance rows included. cost: macs relative to the teacher's. `intervals`: 95 % bootstrap intervals over the images
    (Efron 1979), where they were asked for; rfid itself is biased upwards for few images. to_real: Fréchet distance
    to real images, where there are any.
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

    def document(self) -> dict[str, Any]:
        """The figures as a JSON object."""
        return asdict(self)


def bootstrap(figures: Callable[[NDArray[np.int64]], dict[str, float]], count: int) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals, each image with its reference drawn together, moved by the bias that resampling shows.

    A Fréchet distance is larger for resamples, in which images repeat (Efron and Tibshirani 1993, chapter 10). No distance is
    below zero.
    """
    rng = np.random.default_rng(0)
    drawn, whole = [figures(rng.integers(0, count, count)) for _ in range(RESAMPLES)], figures(np.arange(count))
    intervals = {}
    for name, value in whole.items():
        values = np.array([resample[name] for resample in drawn])
        low, high = np.quantile(values, (0.025, 0.975)) - (values.mean() - value)
        intervals[name] = (float(low if name in ("psnr", "clip_score") else max(low, 0.0)), float(high))
    return intervals
