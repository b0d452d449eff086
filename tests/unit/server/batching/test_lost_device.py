"""A device that is lost at any call: all who wait are told at once, nobody hangs, and the thread ends with one line."""

from __future__ import annotations

import math
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
import torch
from server_model import FakeText, ThreeChannels, small_model

from engine.device import DeviceLost, HostFence, HostLane
from engine.unrolled import UnrolledUNet
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine
from server.errors import NotReady


class FailingDevice:
    """Notes each call, and answers one of them and all that follow with an error."""

    def __init__(self, fails_at=math.inf):
        self.calls, self.fails_at = [], fails_at

    def ask(self, what):
        self.calls.append(what)
        if len(self.calls) > self.fails_at:
            raise DeviceLost("gone") if "fence" in what else torch.AcceleratorError("CUDA error: gone\nfor details …")


class FailingUNet(UnrolledUNet):
    """A UNet on such a device, behind the host: it is past a fence when somebody has waited for it, or asked twice."""

    def __init__(self, unet, device):
        super().__init__(unet)
        self.failing = device

    def fence(self):
        self.failing.ask("call: event")
        return FailingFence(self.failing, "fence of the waves")

    def lane(self):
        lane = HostLane()
        lane.fence = lambda: FailingFence(self.failing, "fence of a decode")
        return lane

    def full(self, *given, **options):
        self.failing.ask("call: wave")
        return super().full(*given, **options)

    def partial(self, *given):
        self.failing.ask("call: wave")
        return super().partial(*given)


class FailingFence(HostFence):
    def __init__(self, device, what):
        super().__init__()
        self.device, self.what, self.asked = device, what, 0

    def done(self):
        self.device.ask(self.what)
        self.asked += 1
        return self.asked > 1

    def wait(self):
        self.device.ask(self.what)
        self.asked = 2


@dataclass(frozen=True)
class FailingDecoder(ThreeChannels):
    device: FailingDevice = None

    def __call__(self, latents):
        self.device.ask("call: decode")
        return super().__call__(latents)


@dataclass(frozen=True)
class FailingText(FakeText):
    device: FailingDevice = None

    def encode(self, prompts, *rest):
        self.device.ask("call: encode")
        return super().encode(prompts)


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


def on(device, model):
    decoder, prompts = FailingDecoder(device=device), FailingText(device=device)
    made = replace(model, network=FailingUNet(model.network.unet, device), decoder=decoder, prompts=prompts)
    vars(made)["macs"] = model.macs  # counted once
    return made


def spec(model, seed, **options) -> ImageSpec:
    segments = (Segment(), Segment(partial=(1,), branch=1))
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)
    return ImageSpec(model.compile(schedule), f"prompt {seed % 3}", "", 2.0, seed, **options)


def engine_of(device, model):
    """One that works already; and the futures of images in flight, of some that wait, and of an idle one."""
    engine = ModelEngine(on(device, model), Admission(max_seconds=math.inf, pace=1.0), max_wave_rows=2)
    clients = engine.submit([spec(model, seed, previews=seed % 2) for seed in range(6)], lambda *_: None)
    futures = [*clients, *engine.submit([spec(model, 9, idle=True)])]
    engine.start()
    return engine, futures


def all_calls(model):
    """What is asked of a device that works, from the first image to the last."""
    device = FailingDevice()
    engine, futures = engine_of(device, model)
    for future in futures:
        assert future.result(timeout=60).macs > 0
    calls = list(device.calls)
    engine.close()
    return calls


def fails(model, calls, caplog):
    """The device fails after so many calls: everyone is answered, and with what they are to be answered."""
    caplog.clear()
    engine, futures = engine_of(FailingDevice(calls), model)
    for _ in range(20):  # where fewer calls were made than the last time, it fails a little later
        for future in futures:
            error = future.exception(timeout=60)
            assert error is None or (type(error), error.status, error.code) == (NotReady, 503, "not_ready"), (calls, error)
        with suppress(NotReady):
            futures += engine.submit([spec(model, 0)])
    engine._device_thread.thread.join(timeout=60)
    assert not engine.alive
    with pytest.raises(NotReady):
        engine.submit([spec(model, 0)])
    assert engine._admission.seconds == 0
    assert not engine._images
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage().partition(": ")[0] for record in said] == ["the device is lost"], (calls, caplog.text)
    assert said[0].exc_info is None
    assert "\n" not in said[0].getMessage()
    assert any(future.exception() for future in futures), "somebody was in flight or came later"


def test_wherever_the_device_fails_all_who_wait_are_told_and_the_thread_ends(model, caplog):
    calls = all_calls(model)
    assert len(set(calls)) == 6, "encode, wave, decode, an event, and fences of both"
    kinds = list(zip(calls, [None, *calls], strict=False))
    places = {kind: kinds.index(kind) for kind in kinds}  # of each kind of call behind each other one
    for place in sorted(places.values()):
        if place >= before(model):
            fails(model, place, caplog)


def before(model):
    """Calls that an engine makes before it works."""
    device = FailingDevice()
    ModelEngine(on(device, model), Admission(max_seconds=1), max_wave_rows=2)
    return len(device.calls)


def test_who_cancels_while_the_device_is_lost_stays_cancelled(model):
    engine, futures = engine_of(FailingDevice(before(model) + 20), model)
    futures[5].cancel()
    for future in futures:
        with suppress(CancelledError):
            future.exception(timeout=60)
    engine._device_thread.thread.join(timeout=60)
    assert not engine.alive


def test_an_error_that_is_no_lost_device_fails_its_image_alone(model, monkeypatch):
    """The same places, but the device goes on: its fences answer."""
    device = FailingDevice()
    engine, futures = engine_of(device, model)
    assert all(future.exception(timeout=60) is None for future in futures)
    monkeypatch.setattr(ThreeChannels, "__call__", lambda *_: 1 / 0)
    (future,) = engine.submit([spec(model, 1)])
    assert "decoding this image failed" in str(future.exception(timeout=60))
    assert engine.alive
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_without_a_word_leaves_nobody_waiting(model, monkeypatch):
    engine = ModelEngine(model, Admission(max_seconds=60), max_wave_rows=2)
    monkeypatch.setattr(engine._waves, "launch", lambda *_: (_ for _ in ()).throw(SystemExit))
    futures = engine.submit([spec(model, seed) for seed in range(6)])
    engine.start()
    assert {type(future.exception(timeout=60)) for future in futures} == {NotReady}
    engine._device_thread.thread.join(timeout=60)
    with pytest.raises(NotReady, match="the engine is lost"):
        engine.submit([spec(model, 0)])
