"""The figures of a place in the table, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.differences import PSNR, REAL, RFID, SCORE
from benchmarks.paper.images import MeasuredImages, write_arrays
from evaluation import Gaussian, frechet_distance, gaussian, psnr
from evaluation.paired import Chosen, Estimate, Resampled, resampled

Figures = Mapping[str, Resampled]


def figures(images: MeasuredImages, teacher: MeasuredImages, real: Gaussian | None, cache: Path) -> dict[str, Resampled]:
    """All figures of a sample and of its resamples, kept in a file: thousands of Fréchet distances take minutes.

    rfid, to_real: Fréchet distances to the teacher's images and to real ones. psnr: dB. score: mean score, where images have
    one. Images that are not finite have no figures.
    """
    if not images.finite:
        return {}
    if cache.is_file():
        with np.load(cache, allow_pickle=False) as kept:
            return {name: Resampled(float(kept[name][0]), kept[name][1:]) for name in kept.files}

    def measured(chosen: Chosen) -> dict[str, float]:
        own = gaussian(images.features[chosen])
        by_name = {
            RFID: max(frechet_distance(own, teacher.features[chosen]), 0.0),
            PSNR: psnr(float(images.errors[chosen].mean())),
        }
        if real is not None:
            by_name[REAL] = frechet_distance(own, real)
        if np.isfinite(images.scores).all():
            by_name[SCORE] = float(images.scores[chosen].mean())
        return by_name

    found = resampled(measured, len(images.features))
    write_arrays(cache, {name: np.append(one.value, one.drawn) for name, one in found.items()})
    return found


def document(own: Figures, teacher: Figures, ours: Figures) -> dict[str, Any]:
    """The figures as JSON: each with its interval, its distance and score less the teacher's, and ours against it."""
    less = {name: own[name].less(teacher[name]) for name in (REAL, SCORE) if name in own}
    ratios = {name: ours[name].over(own[name]) for name in (RFID, REAL) if name in own and name in ours}
    apart = {name: ours[name].less(own[name]) for name in (PSNR, SCORE) if name in own and name in ours}
    return {
        "figures": _as_json({name: one.estimate() for name, one in own.items()}),
        "less_teacher": _as_json(less),
        "ours_over_this": _as_json(ratios),
        "ours_less_this": _as_json(apart),
    }


def _as_json(estimates: Mapping[str, Estimate | None]) -> dict[str, dict[str, float]]:
    return {name: estimate._asdict() for name, estimate in estimates.items() if estimate}
