"""A candidate's report: image by image, clustered by request, each pair of schedules by itself."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from benchmarks.paired_alarms import KINDS, alarm_shares
from server.experiments.analysis import statistics
from server.experiments.analysis.pairs import ALPHA, FEW, RESOLUTION, PairSummary, summarise_pairs
from server.experiments.events import ImageFigures, PairEvent

START = datetime(2030, 1, 1, tzinfo=UTC)
ACTIVE, CANDIDATE, NEXT = "0" * 64, "1" * 64, "2" * 64


def pair(number: int, request: str = "", digest: str = ACTIVE, failed: str | None = None, **figures: Any) -> PairEvent:
    """Image `number`; figures are (active's, candidate's)."""
    both = {"macs": (10, 7), "seconds": (1.0, 0.75), "psnr": (25.0, 24.0)} | figures
    images = None if failed else tuple(ImageFigures(**{name: one[side] for name, one in both.items()}) for side in (0, 1))
    return PairEvent(
        time=START + timedelta(seconds=number), request_id=request or f"r{number}", model="emoji64", tier="balanced",
        digest=digest, candidate=CANDIDATE, size="64x64", images=images, failed=failed,
    )  # fmt: skip


def known(summary: PairSummary) -> dict[str, Any]:
    return {one.figure: one for one in summary.figures}


def noisy(requests: int, images: int = 1, seed: int = 0) -> list[PairEvent]:
    """Images that differ by 5 dB and by half of their seconds from prompt to prompt, and little within a pair."""
    dice, events = np.random.default_rng(seed), []
    for request in range(requests):
        quality, seconds, harm = dice.normal(25, 5), dice.lognormal(0, 0.5), dice.normal(1, 0.5)
        for image in range(images):
            figures = {"psnr": (quality, quality - harm), "seconds": (seconds, 0.75 * seconds * dice.lognormal(0, 0.05))}
            events.append(pair(request * images + image, f"r{request}", **figures))
    return events


def test_means_and_differences_are_those_of_the_same_images():
    (summary,) = summarise_pairs([pair(i, psnr=(20.0 + i, 19.5 + i)) for i in range(FEW)])
    assert (summary.images, summary.requests, summary.failed) == (FEW, FEW, 0)
    quality, macs, seconds = (known(summary)[name] for name in ("psnr", "macs", "seconds"))
    assert quality.candidate - quality.active == pytest.approx(-0.5)
    assert tuple(quality.effect) == pytest.approx((-0.5, -0.5, -0.5)), "without variation within pairs it is certain"
    assert macs.effect.estimate == pytest.approx(0.7)
    assert seconds.effect.estimate == pytest.approx(0.75)
    assert "feature_distance" not in known(summary), "no extractor, no distances"


def test_what_prompts_have_in_common_does_not_widen_the_interval():
    events = noisy(300)
    (summary,) = summarise_pairs(events)
    active, candidate = (np.array([event.images[side].psnr for event in events]) for side in (0, 1))
    unpaired = statistics.difference(
        *(statistics.moments(np.ones(300), one) for one in (active, candidate)), RESOLUTION["psnr"], ALPHA
    )
    effect = known(summary)["psnr"].effect
    assert effect.estimate == pytest.approx(float(unpaired.estimate))
    assert (unpaired.high - unpaired.low) > 5 * (effect.high - effect.low)
    assert effect.high < 0


def test_the_intervals_are_the_confidence_sequence_of_the_clustered_estimate():
    events = noisy(FEW, images=3)
    (summary,) = summarise_pairs(events)
    differences = np.array([event.images[1].psnr - event.images[0].psnr for event in events]).reshape(FEW, 3).sum(1)
    value = differences.sum() / (3 * FEW)
    variance = ((differences - 3 * value) ** 2).sum() / (3 * FEW) ** 2 * FEW / (FEW - 1)
    width = float(statistics.half_width(variance, RESOLUTION["psnr"], ALPHA))
    assert tuple(known(summary)["psnr"].effect) == pytest.approx((value, value - width, value + width))
    seconds = np.array([[one.seconds for one in event.images] for event in events]).reshape(FEW, 3, 2).sum(1)
    ratio = seconds[:, 1].sum() / seconds[:, 0].sum()
    variance = ((seconds[:, 1] - ratio * seconds[:, 0]) ** 2).sum() / seconds[:, 0].sum() ** 2 * FEW / (FEW - 1)
    width = float(statistics.half_width(variance / ratio**2, math.log1p(RESOLUTION["seconds"]), ALPHA))
    bounds = [math.log(bound) for bound in known(summary)["seconds"].effect]
    assert bounds == pytest.approx([math.log(ratio), math.log(ratio) - width, math.log(ratio) + width])


def test_images_of_one_request_are_no_more_than_one_request():
    assert known(summarise_pairs(noisy(FEW - 1, images=4))[0])["psnr"].effect is None
    few, many = (known(summarise_pairs(noisy(FEW, images))[0])["psnr"].effect for images in (1, 4))
    assert many.high - many.low > 0.9 * (few.high - few.low), "its harm is the prompt's, so more images say no more of it"


def test_pairs_of_different_schedules_do_not_mix_and_the_newest_is_first():
    events = [pair(i, psnr=(25.0, 24.0)) for i in range(60)] + [
        pair(100 + i, digest=NEXT, psnr=(25.0, 27.0)) for i in range(70)
    ]
    newest, earlier = summarise_pairs(reversed(events))
    assert [(one.digest, one.images) for one in (newest, earlier)] == [(NEXT, 70), (ACTIVE, 60)]
    assert [known(one)["psnr"].effect.estimate for one in (newest, earlier)] == [pytest.approx(2.0), pytest.approx(-1.0)]


def test_failures_are_counted_and_are_no_pairs():
    (summary,) = summarise_pairs([pair(1), pair(2, failed="generation_failed")])
    assert (summary.images, summary.failed, summary.requests) == (1, 1, 1)
    (summary,) = summarise_pairs([pair(2, failed="generation_failed")])
    assert (summary.images, summary.failed, list(summary.figures)) == (0, 1, [])


def test_the_newest_running_rfids_are_shown():
    images = [
        tuple(ImageFigures(macs=1, seconds=1, psnr=1, feature_distance=1, rfid=rfid) for rfid in rfids)
        for rfids in ((None, None), (4.0, 5.0), (3.0, 4.5), (None, None))
    ]
    events = [pair(i).model_copy(update={"images": both}) for i, both in enumerate(images)]
    assert summarise_pairs(events[::-1])[0].rfids == (3.0, 4.5)
    assert summarise_pairs(events[:1])[0].rfids is None


@pytest.mark.parametrize(("name", "figure", "pairs"), [KINDS[0], KINDS[4]], ids=[KINDS[0][0], KINDS[4][0]])
def test_false_alarms_under_continuous_peeking_stay_below_alpha(name, figure, pairs):
    """The full figures are `python -m benchmarks.paired_alarms`'s. Ordinary intervals fail the same test."""
    ours, ordinary = alarm_shares(figure, pairs, 200)
    assert ours <= ALPHA + 0.025 < ordinary
