"""The figures of a place in the table, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.differences import PSNR, REAL, RFID, SCORE
from benchmarks.paper.images import MeasuredImages, write_arrays
from evaluation import Features, Gaussian, frechet_distance, gaussian, psnr
from evaluation.paired import Chosen, Estimate, Resampled, resampled, swap_test

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


def chances(images: MeasuredImages, teacher: MeasuredImages, real: Gaussian | None, cache: Path) -> dict[str, float]:
    """How likely a difference to the teacher as large as that of its distance to real images, or its score, is by chance.

    Kept in a file as `figures` are.
    """
    if not images.finite:
        return {}
    if cache.is_file():
        with np.load(cache, allow_pickle=False) as kept:
            return {name: float(kept[name]) for name in kept.files}
    features = np.concatenate([images.features, teacher.features])
    scores = np.concatenate([images.scores, teacher.scores])
    differences: dict[str, Callable[[Chosen, Chosen], float]] = {}
    if real is not None:
        differences[REAL] = lambda own, other: to_real(features[own]) - to_real(features[other])
    if np.isfinite(scores).all():
        differences[SCORE] = lambda own, other: float(scores[own].mean() - scores[other].mean())

    def to_real(sample: Features) -> float:
        assert real is not None
        return frechet_distance(gaussian(sample), real)

    found = {name: swap_test(difference, len(images.features)) for name, difference in differences.items()}
    write_arrays(cache, {name: np.array(chance) for name, chance in found.items()})
    return found


def document(own: Figures, teacher: Figures, ours: Figures, by_chance: Mapping[str, float]) -> dict[str, Any]:
    """The figures as JSON: each with its interval, its distance and score less the teacher's, and ours against it.

    by_chance: of `chances`, which the differences to the teacher come with.
    """
    less = {name: own[name].less(teacher[name]) for name in (REAL, SCORE) if name in own}
    ratios = {name: ours[name].over(own[name]) for name in (RFID, REAL) if name in own and name in ours}
    apart = {name: ours[name].less(own[name]) for name in (PSNR, SCORE) if name in own and name in ours}
    return {
        "figures": _as_json({name: one.estimate() for name, one in own.items()}),
        "less_teacher": {name: one | {"p": by_chance.get(name, 1.0)} for name, one in _as_json(less).items()},
        "ours_over_this": _as_json(ratios),
        "ours_less_this": _as_json(apart),
    }


def _as_json(estimates: Mapping[str, Estimate | None]) -> dict[str, dict[str, float]]:
    return {name: estimate._asdict() for name, estimate in estimates.items() if estimate}
