"""Decoding beside denoising: a lane whose work ends when the test says so, and a decoder with little memory."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from server_model import small_model
from stepped_engine import Stepped

from engine.device import HostFence, HostLane
from engine.unrolled import UnrolledUNet
from registry.schedule import Schedule, Segment
from server.batching import decodes
from server.batching.admission import Admission
from server.batching.chunks import Chunks
from server.batching.image_task import ImageSpec
from server.errors import GenerationFailed, NotReady


class Gate:
    """Whether a lane's work ends. While it is shut, whoever waits for it is an error: nobody but the test could open it."""

    is_open = False


class GateFence(HostFence):
    """Passed when the gate is open, for ever then."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.passed = gate, False

    def done(self):
        self.passed = self.passed or self.gate.is_open
        return self.passed

    def wait(self):
        assert self.done(), "the engine waits for the decoder"


class Beside(UnrolledUNet):
    """A UNet beside which the gate's lane works."""

    def __init__(self, unet, gate):
        super().__init__(unet)
        self.gate = gate

    def lane(self):
        lane = HostLane()
        lane.fence = lambda: GateFence(self.gate)
        return lane


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def beside(model, gate):
    made = replace(model, network=Beside(model.network.unet, gate))
    vars(made)["macs"] = model.macs  # counted once
    return made


@pytest.fixture
def engine(beside):
    return Stepped(beside, Admission(max_seconds=math.inf, pace=1.0), max_wave_rows=4)


@pytest.fixture
def asked(monkeypatch, model):
    """Sizes of the chunks that the decoder is asked for."""
    sizes, plain = [], type(model).decode_later

    def decode(self, latents):
        sizes.append(len(latents))
        return plain(self, latents)

    monkeypatch.setattr(type(model), "decode_later", decode)
    return sizes


def spec(model, seed, steps=1, **options) -> ImageSpec:
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", steps), segments=(Segment(),) * steps)
    return ImageSpec(model.compile(schedule), "a", "", 2.0, seed, **options)


def test_a_decode_that_lands_late_blocks_no_wave_and_no_newcomer(model, engine, gate):
    early, late = engine.submit([spec(model, 1), spec(model, 2, steps=4)])
    engine.take_steps(6)
    (newcomer,) = engine.submit([spec(model, 3, steps=2)])
    engine.take_steps(3)
    assert engine._waves.tasks == [], "all are denoised"
    assert not any(future.done() for future in (early, late, newcomer))
    assert len(engine._images) == len(engine._decodes) == 3
    gate.is_open = True
    engine.take_steps()
    assert all(future.result().macs > 0 for future in (early, late, newcomer))
    assert not engine._decodes


def test_a_decode_that_never_lands_is_a_silence_though_the_thread_goes_on(model, engine, gate, monkeypatch):
    now = 0.0
    monkeypatch.setattr("server.batching.silence.monotonic", lambda: now)
    (future,) = engine.submit([spec(model, 1)])
    engine.take_steps(3)
    now = 200.0
    engine.take_steps(3)
    assert engine._device_thread.silent_seconds == 200
    gate.is_open = True
    engine.take_steps()
    assert future.done()
    assert engine._device_thread.silent_seconds == 0


@pytest.mark.parametrize("seed", range(3))
def test_images_and_previews_are_those_of_a_decoder_in_between(model, engine, gate, seed):
    dice, seen, results = random.Random(seed), {}, {}
    specs = [spec(model, i, steps=dice.choice([1, 2, 4]), previews=dice.choice([0, 1])) for i in range(12)]
    for runner in (Stepped(model, Admission(max_seconds=60), max_wave_rows=4), engine):
        previews = seen[runner] = {}
        futures = runner.submit(specs, lambda spec, i, pixels, p=previews: p.__setitem__((spec.seed, i), pixels))
        while not all(future.done() for future in futures):
            gate.is_open = dice.random() < 0.3
            runner.take_steps()
        results[runner] = [future.result().pixels for future in futures]
    plain, laned = results.values()
    assert all(torch.equal(one, other) for one, other in zip(plain, laned, strict=True))
    plain, laned = seen.values()
    assert plain.keys() == laned.keys() != set()
    assert all(torch.equal(pixels, laned[which]) for which, pixels in plain.items())


def test_previews_come_before_their_image_however_late_they_are_decoded(model, engine, gate):
    order = []
    (future,) = engine.submit([spec(model, 1, steps=4, previews=2)], lambda _, i, __: order.append(i))
    future.add_done_callback(lambda _: order.append("image"))
    engine.take_steps(6)
    assert order == []
    gate.is_open = True
    engine.take_steps()
    assert order == [0, 1, "image"]


def test_who_is_cancelled_while_decoded_gets_nothing_and_the_device_keeps_its_latent(model, engine, gate):
    (future,) = engine.submit([spec(model, 1)])
    engine.take_steps(2)
    future.cancel()
    engine.take_steps()
    assert not engine._images
    assert engine._admission.seconds == 0
    assert len(engine._decodes) == 1, "the device reads it until the fence is passed"
    gate.is_open = True
    engine.take_steps()
    assert not engine._decodes
    assert future.cancelled()


def test_who_is_cancelled_before_is_not_decoded(model, engine, gate, asked):
    futures = engine.submit([spec(model, seed) for seed in range(8)])
    engine.take_steps(6)
    assert asked == [2, 2], "two images a wave, two chunks at work"
    futures[-1].cancel()
    gate.is_open = True
    engine.take_steps()
    assert asked == [2, 2, 2, 1]
    assert all(future.done() for future in futures)


def test_what_waits_is_decoded_together_in_fixed_sizes(model, engine, gate, asked):
    engine.submit([spec(model, seed) for seed in range(8)])
    engine.take_steps(2)
    (future,) = engine.submit([spec(model, 8)])
    engine.take_steps(4)
    assert asked == [2, 2]
    gate.is_open = True
    engine.take_steps()
    assert asked == [2, 2, 4, 1]
    assert future.done()


def test_waves_wait_for_a_decoder_that_is_slower_only_when_too_many_wait(model, engine, gate, monkeypatch):
    monkeypatch.setattr(decodes, "MOST_WAITING", 2)
    engine.submit([spec(model, seed) for seed in range(8)])
    with pytest.raises(AssertionError, match="waits for the decoder"):
        engine.take_steps(6)
    assert len(engine._decodes._waiting) > 2


def test_an_engine_with_nothing_but_a_decode_at_work_hands_it_out_and_takes_newcomers(model, engine, gate):
    engine.start()
    (first,) = engine.submit([spec(model, 1)])
    while not engine._decodes._at_work:
        assert not first.done()
    (second,) = engine.submit([spec(model, 2)])
    while len(engine._decodes) < 2:
        assert not second.done()
    gate.is_open = True
    assert first.result(timeout=60).macs == second.result(timeout=60).macs
    engine.close()


def test_closing_sees_out_what_is_denoised(model, engine, gate):
    done, early = engine.submit([spec(model, 1), spec(model, 2, steps=4)])
    engine.take_steps()
    assert len(engine._decodes) == 1
    gate.is_open = True
    engine.start()
    engine.close()
    assert done.result().macs > 0
    assert early.exception() is None or isinstance(early.exception(), NotReady)


def with_room_for(most, monkeypatch, model):
    """The decoder's memory holds so many images; returns the sizes that were tried."""
    tried, plain = [], type(model).decode_later

    def decode(self, latents):
        tried.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError("no memory")
        return plain(self, latents)

    monkeypatch.setattr(type(model), "decode_later", decode)
    return tried


@pytest.fixture
def wide(model):
    """Waves of eight images."""
    return Stepped(model, Admission(max_seconds=60), max_wave_rows=16)


@pytest.mark.parametrize(("most", "first"), [(8, [8]), (4, [8, 4, 4]), (2, [8, 4, 2, 2, 4, 2, 2])])
def test_chunks_that_memory_does_not_hold_are_halved_and_that_is_remembered(model, wide, monkeypatch, most, first):
    tried = with_room_for(most, monkeypatch, model)
    for expected in (first, [most] * (8 // most)):
        futures = wide.submit([spec(model, seed) for seed in range(8)])
        wide.take_steps(2)
        assert all(future.result().macs > 0 for future in futures)
        assert tried == expected
        tried.clear()


def test_an_image_that_memory_does_not_hold_alone_fails_alone(model, wide, monkeypatch, caplog):
    with_room_for(0, monkeypatch, model)
    (future,) = wide.submit([spec(model, 1)])
    wide.take_steps(2)
    with pytest.raises(GenerationFailed, match="decoding"):
        future.result()
    assert [record.getMessage() for record in caplog.records] == ["decoding failed"]


def test_an_error_of_one_image_makes_no_chunk_smaller(model, wide, monkeypatch):
    plain, tried = type(model).decode_later, []

    def decode(self, latents):
        tried.append(len(latents))
        if any(latent.isnan().any() for latent in latents):
            raise RuntimeError("cannot decode")
        return plain(self, latents)

    monkeypatch.setattr(type(model), "decode_later", decode)
    eighths = cycle([math.nan, *[1.0] * 7])
    monkeypatch.setattr(wide._waves.slots.at(), "latent", lambda _: torch.full((4, 8, 8), next(eighths)))
    monkeypatch.setattr(wide._waves, "land", lambda wave: wave)  # which would find it out
    for _ in range(2):
        futures = wide.submit([spec(model, seed) for seed in range(8)])
        wide.take_steps(2)
        assert sum(future.exception() is None for future in futures) == 7
    assert tried.count(8) == 2


@pytest.mark.parametrize(
    ("image_bytes", "free", "largest"), [(1, 16, 8), (1, 15, 4), (3, 12, 2), (3, 11, 1), (100, 1, 1), (0, 0, 8)]
)
def test_chunks_take_no_more_than_a_share_of_the_free_memory(image_bytes, free, largest):
    assert Chunks.within(image_bytes, free).largest == largest


def test_a_chunk_is_the_largest_size_that_waits_and_fits():
    assert [Chunks().size(waiting) for waiting in (1, 2, 3, 4, 7, 8, 100)] == [1, 2, 2, 4, 4, 8, 8]
    assert [Chunks(2).size(waiting) for waiting in (1, 2, 3, 100)] == [1, 2, 2, 2]
