"""What the server does now is what its metrics say."""

from __future__ import annotations

from types import SimpleNamespace

from server.operator.work import work
from server.telemetry import metrics
from server.telemetry.served import serving

NAMES = "work-first", "work-other"


def served(name):
    return SimpleNamespace(name=name, state="loaded", fault="")


def test_counts_are_of_their_model_and_tier_and_latencies_of_what_went_well():
    for name, images in zip(NAMES, (2, 1), strict=True):
        with serving(name):
            for _ in range(images):
                metrics.request_seconds.labels("fast", "none", "ok").observe(0.3)
                metrics.images_total.labels("fast", "none", "ok").inc()
                metrics.image_macs.labels("fast").observe(25)
                metrics.teacher_macs_total.labels("fast", "none").inc(100)
                metrics.finished_steps_total.labels("partial", "fast").inc(4)
            metrics.request_seconds.labels("fast", "treatment", "error").observe(9)
            metrics.wave_rows.labels("full").observe(6)
            metrics.queue_images.set(images)
    found = work([served(name) for name in ("default", *NAMES)], 1, clock=lambda: 5.0)  # whose is what names no model
    assert (found.time, found.processes, [model.model for model in found.models]) == (5.0, 1, ["default", *NAMES])
    for model, images in zip(found.models[1:], (2, 1), strict=True):
        (tier,) = model.tiers
        assert (tier.requests, tier.images) == ({"error": 1, "ok": images}, images)
        assert (tier.macs, tier.teacher_macs, tier.steps["partial"]) == (25 * images, 100 * images, 4 * images)
        assert tier.latency.count == images
        at = dict(zip(tier.latency.bounds, tier.latency.counts, strict=True))
        assert (at[0.25], at[0.5], at[300.0]) == (0, images, images)
        (waves,) = model.waves
        assert (waves.kind, waves.waves, waves.rows) == ("full", 1, 6)
        assert model.queue_images == images


def test_of_a_server_with_one_model_what_is_said_without_a_name_is_its():
    before = work([served("alone")], 1).models[0].queue_images
    with serving(""):
        metrics.queue_images.set(before + 3)
    assert work([served("alone")], 1).models[0].queue_images == before + 3
    assert work([served("alone")], 1).of == "this process"
