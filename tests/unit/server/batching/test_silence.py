"""How long the device has answered nothing: seen from beside a thread that hangs, and never of one that has nothing to do."""

from __future__ import annotations

import math
import time
from threading import Event, Thread

import pytest
from server_model import small_model
from stepped_engine import Stepped

from engine.model import Model
from engine.unrolled import UnrolledUNet
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.text_and_vae import TextAndVae

HANGING = {"wave": (UnrolledUNet, "full"), "encode": (TextAndVae, "encode"), "decode": (Model, "decode_later")}
LONG = 200.0


class Clock:
    now = 1000.0


class Held:
    """A call that begins and comes back when the test lets it go."""

    def __init__(self, monkeypatch, owner, name):
        self.begun, self.may_end = Event(), Event()
        plain = getattr(owner, name)

        def call(*given, **options):
            self.begun.set()
            assert self.may_end.wait(60)
            return plain(*given, **options)

        monkeypatch.setattr(owner, name, call)


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def engine(model):
    engine = Stepped(model, Admission(max_seconds=math.inf, pace=1.0), max_wave_rows=4)
    yield engine
    if engine.alive:
        engine.close()


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("server.batching.silence.monotonic", lambda: Clock.now)
    return Clock


def schedule(model) -> Schedule:
    return Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * 4)


def spec(model, seed=0) -> ImageSpec:
    return ImageSpec(model.compile(schedule(model)), "a", "", 2.0, seed)


def silent(engine) -> float:
    return engine._device_thread.silent_seconds


def falls_asleep(engine, clock):
    """Whether nothing is awaited any more, however late it becomes."""
    clock.now += LONG
    until = time.monotonic() + 60
    while engine._device_thread._silence._since is not None:  # 0 s is also what it says just after an answer
        assert time.monotonic() < until
        time.sleep(0.01)
    clock.now += LONG
    return silent(engine) == 0


@pytest.mark.parametrize("call", HANGING)
def test_a_call_that_hangs_with_an_image_is_a_silence_that_grows_and_ends_with_it(model, engine, clock, monkeypatch, call):
    engine.start()
    assert falls_asleep(engine, clock)
    held = Held(monkeypatch, *HANGING[call])
    (future,) = engine.submit([spec(model)])
    assert held.begun.wait(60)
    assert silent(engine) == 0
    for times in (1, 2):
        clock.now += LONG
        assert silent(engine) == times * LONG
    held.may_end.set()
    assert future.result(timeout=60).macs > 0
    assert falls_asleep(engine, clock)


def test_each_wave_that_lands_ends_it(model, engine, clock):
    (future,) = engine.submit([spec(model)])
    engine.take_step()
    while not future.done():
        assert silent(engine) == 0
        clock.now += LONG
        assert silent(engine) == LONG
        engine.take_step()


def test_a_long_pause_before_an_image_is_none(model, engine, clock):
    engine.take_step()
    clock.now += LONG
    engine.submit([spec(model)])
    engine.take_step()
    assert silent(engine) == 0


def test_a_model_may_be_warmed_up_for_as_long_as_it_takes(model, engine, clock, monkeypatch):
    held = Held(monkeypatch, *HANGING["wave"])
    start = Thread(target=engine.start, args=([schedule(model)],))
    start.start()
    assert held.begun.wait(60)
    clock.now += LONG
    assert silent(engine) == 0
    held.may_end.set()
    start.join(60)
    assert falls_asleep(engine, clock)


def test_an_engine_that_has_ended_awaits_nothing(model, engine, clock, monkeypatch):
    engine.start()
    held = Held(monkeypatch, *HANGING["wave"])
    engine.submit([spec(model)])
    assert held.begun.wait(60)
    clock.now += LONG
    held.may_end.set()
    engine.close()
    clock.now += LONG
    assert silent(engine) == 0
