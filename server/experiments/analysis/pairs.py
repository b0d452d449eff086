"""A candidate against what its tier means, image by image: both made the same images of the same prompts and noise.

An image gives one pair (a, c) of a figure. What is estimated is the mean of c − a, and for what is compared by ratio Σ c / Σ a;
either is a ratio of sums over requests as in `statistics`, with requests for units: images of one request share a prompt. So
what prompts have in common, which is most of the variance between images, does not widen the interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from server.experiments.analysis.comparison import Interval
from server.experiments.analysis.statistics import half_width, mean, moments
from server.experiments.events import ImageFigures, PairEvent

FEW = 50  # requests below which there is no interval: see `paired_alarms` of `benchmarks/false_alarms.py`
ALPHA = 0.05

Figure = Literal["psnr", "feature_distance", "macs", "seconds"]
RESOLUTION: dict[Figure, float] = {"psnr": 1.0, "feature_distance": 0.2, "macs": 0.2, "seconds": 0.2}
"""τ of the intervals: dB, and relative changes. Coarser than an experiment's: schedules differ by more, and images are few."""


@dataclass(frozen=True)
class FigureComparison:
    """The means of one figure over the same images, and the candidate's against the active one's.

    psnr in dB by difference, the others by ratio; `effect` is None while there is too little to say.
    """

    figure: Figure
    active: float
    candidate: float
    effect: Interval | None


@dataclass(frozen=True)
class PairSummary:
    """What is known of one pair of schedules: `digest` is what the tier meant, `candidate` what it might mean.

    images: made by both, of so many requests. failed: images that only the candidate could not make. rfids: the running ones
    that were computed last, on whichever server; None before there were enough images.
    """

    digest: str
    candidate: str
    requests: int
    images: int
    failed: int
    first: datetime
    last: datetime
    figures: Sequence[FigureComparison]
    rfids: tuple[float, float] | None


def summarise_pairs(events: Iterable[PairEvent]) -> list[PairSummary]:
    """One summary for each pair of schedules, the one with the newest event first; events may come in any order."""
    by_pair = defaultdict[tuple[str, str], list[PairEvent]](list)
    for event in events:
        by_pair[event.digest, event.candidate].append(event)
    summaries = [_summary(sorted(found, key=lambda event: (event.time, event.request_id))) for found in by_pair.values()]
    return sorted(summaries, key=lambda summary: summary.last, reverse=True)


def paired_difference(requests: Sequence[str], active: Sequence[float], candidate: Sequence[float], scale: float) -> Interval:
    """The mean of candidate − active over images, each (images,), with its always-valid interval; `scale` is τ.

    requests: whose each image is.
    """
    value, variance = mean(moments(*_by_request(requests, np.ones(len(requests)), np.subtract(candidate, active))))
    return _interval(float(value), float(half_width(variance, scale, ALPHA)))


def paired_ratio(requests: Sequence[str], active: Sequence[float], candidate: Sequence[float], scale: float) -> Interval:
    """Σ candidate / Σ active, as in `paired_difference`; both positive, `scale` relative. Computed on logarithms."""
    value, variance = mean(moments(*_by_request(requests, np.asarray(active), np.asarray(candidate))))
    width = float(half_width(variance / value**2, math.log1p(scale), ALPHA))
    return Interval(*(math.exp(bound) for bound in _interval(math.log(value), width)))


def _by_request(requests: Sequence[str], *values: np.ndarray) -> list[np.ndarray]:
    """Sums by request of values (images,), each (requests,)."""
    _, places = np.unique(np.asarray(requests), return_inverse=True)
    return [np.bincount(places, weights=one) for one in values]


def _interval(estimate: float, width: float) -> Interval:
    return Interval(estimate, estimate - width, estimate + width)


def _summary(events: Sequence[PairEvent]) -> PairSummary:
    """Of one pair's events, the oldest first."""
    made = [(event.request_id, event.images) for event in events if event.images]
    requests, images = [request for request, _ in made], [pair for _, pair in made]
    rfids = [(active.rfid, candidate.rfid) for active, candidate in images]
    known = [(active, candidate) for active, candidate in rfids if active is not None and candidate is not None]
    return PairSummary(
        digest=events[0].digest,
        candidate=events[0].candidate,
        requests=len(set(requests)),
        images=len(images),
        failed=sum(event.failed is not None for event in events),
        first=events[0].time,
        last=events[-1].time,
        figures=[found for figure in RESOLUTION if (found := _compare(figure, requests, images))],
        rfids=known[-1] if known else None,
    )


def _compare(
    figure: Figure, requests: Sequence[str], images: Sequence[tuple[ImageFigures, ImageFigures]]
) -> FigureComparison | None:
    """None where no image has the figure: without an extractor there are no distances."""
    values = [(getattr(active, figure), getattr(candidate, figure)) for active, candidate in images]
    kept = [place for place, pair in enumerate(values) if None not in pair]
    if not kept:
        return None
    active, candidate = ([values[place][side] for place in kept] for side in (0, 1))
    whose = [requests[place] for place in kept]
    means, effect = (float(np.mean(active)), float(np.mean(candidate))), None
    if len(set(whose)) >= FEW and (figure == "psnr" or min(means) > 0):
        estimate = paired_difference if figure == "psnr" else paired_ratio
        effect = estimate(whose, active, candidate, RESOLUTION[figure])
    return FigureComparison(figure, *means, effect)
