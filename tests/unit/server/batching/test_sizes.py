"""Images of several sizes in one engine: each is the plain loop's at its size, and is billed and counted as it ran."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from server_model import small_model

from engine.image_size import ImageSize
from engine.images import levels
from engine.program import Program
from engine.sampler import generate
from registry.errors import InvalidInput
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.memory import slots_within
from server.batching.model_engine import ModelEngine
from server.telemetry import metrics

WIDE, HIGH, LARGE = ImageSize(8, 16), ImageSize(12, 8), ImageSize(16, 16)
MIXED = (Segment(partial=(1,), branch=2), Segment())


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def engine(model):
    return ModelEngine(model, Admission(max_seconds=600), max_wave_rows=4, others=(WIDE, HIGH, LARGE))


def program(model, segments=MIXED) -> Program:
    return model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments))


def spec(model, seed, size=None, guidance=2.0, **fields) -> ImageSpec:
    return ImageSpec(program(model), "a", "", guidance, seed, size, tier="sizes", **fields)


def finish(engine, futures):
    at_work = None
    for _ in range(200):
        if all(future.done() for future in futures):
            return
        at_work = engine.step(at_work)
    raise AssertionError("not done")


def exported() -> float:
    """MACs of this file's images, as Prometheus sees them."""
    samples = metrics.macs_total.collect()[0].samples
    return sum(s.value for s in samples if s.name == "flexi_macs_total" and s.labels["tier"] == "sizes")


def made(size: ImageSize) -> float:
    return float(metrics.image_sizes_total.labels(str(size))._value.get())


def test_images_of_all_sizes_are_the_plain_loops_and_their_macs_are_those_exported(model, engine):
    before, wide = exported(), made(WIDE)
    specs = [
        spec(model, seed, size, guidance) for seed, guidance in enumerate((1.0, 2.0)) for size in (None, WIDE, HIGH, LARGE)
    ]
    futures = engine.submit(specs)
    finish(engine, futures)
    for one, future in zip(specs, futures, strict=True):
        result, noise = future.result(), model.noise(one.seed, one.size)[None]
        negative = model.negative([""]) if one.guidance > 1 else None
        latent = generate(model.network, one.program, noise, model.encode(["a"]), negative, one.guidance)
        want = levels(model.decode(latent)[0])
        assert result.pixels.shape == want.shape == (*(one.size or (8, 8)), 3)
        torch.testing.assert_close(result.pixels, want, rtol=0, atol=1)
        assert result.macs == model.macs_at(one.size).of_program(one.program, one.unet_rows)
    assert exported() - before == sum(future.result().macs for future in futures)
    assert made(WIDE) - wide == 2
    assert engine._waves.slots.free == engine._waves.slots.capacity


def test_previews_of_an_image_have_its_size(model, engine):
    shown = []
    futures = engine.submit([spec(model, 1, WIDE, previews=2)], lambda _, i, pixels: shown.append(pixels.shape))
    finish(engine, futures)
    assert shown == [(8, 16, 3)] * 2


def test_a_large_image_is_not_kept_out_by_small_ones_that_come_after_it(model):
    """The memory holds two rows of the largest size: it is empty before it comes in, and nobody overtakes it."""
    largest = model.slot_bytes(LARGE)
    engine = ModelEngine(model, Admission(max_seconds=600), 4, cache_bytes=3 * largest, others=(LARGE,))
    first = engine.submit([spec(model, seed) for seed in range(3)])
    engine.step(None)
    (large,) = engine.submit([spec(model, 9, LARGE)])
    later = engine.submit([spec(model, 20 + seed) for seed in range(8)])
    finish(engine, [large])
    assert all(future.done() for future in first)
    finish(engine, later)


def test_idle_work_makes_room_for_a_client_of_another_size(model):
    engine = ModelEngine(model, Admission(max_seconds=600), 4, cache_bytes=3 * model.slot_bytes(LARGE), others=(LARGE,))
    (background,) = engine.submit([replace(spec(model, 1, LARGE), tier="shadow", idle=True)])
    engine.step(None)
    clients = engine.submit([spec(model, seed) for seed in range(6)])
    finish(engine, [background, *clients])
    (alone,) = engine.submit([spec(model, 1, LARGE)])
    finish(engine, [alone])
    torch.testing.assert_close(background.result().pixels, alone.result().pixels, rtol=0, atol=1)


def test_who_finds_no_place_any_more_because_one_before_failed_comes_in_later(model, engine, monkeypatch):
    """Without the failed one, others lie elsewhere, and may leave a gap too small for the next: it waits, and is made once."""
    plain = type(engine._newcomers)._fitting
    tasks = engine.submit([replace(spec(model, 1), prompt="poison"), spec(model, 2, WIDE)])
    alone = []

    def in_the_way(self, tasks):
        if len(tasks) == 1 and tasks[0].spec.seed == 2 and not alone:
            alone.append(tasks[0])
            return []
        return plain(self, tasks)

    monkeypatch.setattr(type(engine._newcomers), "_fitting", in_the_way)
    finish(engine, tasks)
    assert alone
    assert isinstance(tasks[0].exception(), Exception)
    assert tasks[1].result().pixels.shape == (8, 16, 3)
    assert not len(engine._queue)


def test_a_larger_size_is_predicted_to_take_longer(model, engine):
    engine._admission.measured(1000, 1e-3)
    own, large = (engine.forecast(program(model), 2, 1, "sizes", size) for size in (None, LARGE))
    assert large > 3 * own > 0


def test_memory_too_small_for_an_image_of_some_size_is_refused_by_that_size(model):
    bounds = 2 * model.slot_bytes(LARGE) - 64
    with pytest.raises(InvalidInput, match="an image of 16x16 with guidance") as caught:
        slots_within(model, 16, bounds, (WIDE, LARGE))
    assert caught.value.param == "cache_mib"
    slots = slots_within(model, 8, None, (WIDE, LARGE))
    assert slots.most(None) >= 8
    assert slots.most(LARGE) >= 2
