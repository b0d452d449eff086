"""Several models in one thread: each image is the plain loop's of its model, and models share the device's MACs."""

from __future__ import annotations

import random
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from server_model import small_model

from engine.images import levels
from engine.sampler import generate
from engine.unrolled import UnrolledUNet
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.device_thread import DeviceThread
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine
from server.errors import NotReady
from server.telemetry.served import serving

MIXES = [(Segment(partial=(1,), branch=2), Segment()), (Segment(),) * 4, (Segment(partial=(2,), branch=1),)]


class Stepped(DeviceThread):
    """A thread whose steps a test takes, and which notes the MACs of each member's waves."""

    at_work = None

    def __init__(self):
        super().__init__()
        self.waves = []

    def add(self, member):
        self._members.append(member)
        plain = member.launch

        def launch():
            inflight = plain()
            if inflight:
                self.waves.append((member, inflight.macs))
            return inflight

        member.launch = launch

    def take_step(self):
        self.at_work = self.step(self.at_work)


@pytest.fixture(scope="module")
def models(tiny, tiny_config):
    """Two of other weights and other cost."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wider = UNet2DConditionModel(**{**tiny_config, "block_out_channels": (16, 24)}).eval().requires_grad_(False)
    return small_model(tiny), small_model(wider)


@pytest.fixture
def thread():
    return Stepped()


@pytest.fixture
def admission():
    return Admission(max_seconds=600, pace=1e-9)


@pytest.fixture
def engines(models, thread, admission):
    made = []
    for model, own in zip(models, (admission, admission.beside()), strict=True):
        with serving(f"model-{len(made)}"):
            made.append(ModelEngine(model, own, max_wave_rows=4, device_thread=thread))
    for engine in made:
        thread.add(engine)
    return made


def spec(model, seed, segments=MIXES[0], guidance=2.0, **fields) -> ImageSpec:
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)
    return ImageSpec(model.compile(schedule), "a", "", guidance, seed, **fields)


def plain(model, one: ImageSpec):
    negative = model.negative([""]) if one.guidance > 1 else None
    noise = model.noise(one.seed)[None]
    return levels(model.decode(generate(model.network, one.program, noise, model.encode(["a"]), negative, one.guidance))[0])


def finish(thread, futures, steps=400):
    for _ in range(steps):
        if all(future.done() for future in futures):
            return
        thread.take_step()
    raise AssertionError("not done")


@pytest.mark.parametrize("mix", range(3))
def test_every_image_is_the_plain_loops_of_its_model_in_any_mix(models, engines, thread, admission, mix):
    dice, asked = random.Random(mix), list[tuple[int, ImageSpec, Future]]()
    for seed in range(14):
        which = dice.randrange(2)
        one = spec(models[which], seed, dice.choice(MIXES), dice.choice((1.0, 2.0)), tier=dice.choice(("fast", "best")))
        asked.append((which, one, engines[which].submit([one])[0]))
        for _ in range(dice.randrange(3)):
            thread.take_step()
        if dice.random() < 0.2:
            dice.choice(asked)[2].cancel()
    finish(thread, [future for _, _, future in asked])
    thread.take_step()
    for which, one, future in asked:
        if not future.cancelled():
            torch.testing.assert_close(future.result().pixels, plain(models[which], one), rtol=0, atol=1)
            assert future.result().macs == models[which].macs.of_program(one.program, one.unet_rows)
    assert {member for member, _ in thread.waves} == set(engines)
    assert admission.seconds == 0
    for engine in engines:
        assert engine._waves.slots.free == engine._waves.slots.capacity


def test_two_models_with_backlog_get_the_same_macs_within_one_waves(models, engines, thread):
    for engine, model, count in zip(engines, models, (60, 30), strict=True):
        engine.submit([spec(model, seed, tier="fast") for seed in range(count)])
    had = dict.fromkeys(engines, 0)
    for _ in range(60):
        thread.take_step()
        member, macs = thread.waves[-1]
        had[member] += macs
        first, second = had.values()
        assert all(len(engine.queue) for engine in engines), "both still have images waiting"
        assert abs(first - second) <= max(macs for _, macs in thread.waves)
    assert models[0].macs.of_program(spec(models[0], 0).program, 2) != models[1].macs.of_program(spec(models[1], 0).program, 2)


def test_a_model_with_two_tiers_gets_as_much_for_each_as_another_with_one(models, engines, thread):
    engines[0].submit([spec(models[0], seed, tier=tier) for seed in range(40) for tier in ("fast", "best")])
    engines[1].submit([spec(models[1], seed, tier="fast") for seed in range(40)])
    for _ in range(60):
        thread.take_step()
    had = {engine: sum(macs for member, macs in thread.waves if member is engine) for engine in engines}
    largest = max(macs for _, macs in thread.waves)
    assert abs(had[engines[0]] - 2 * had[engines[1]]) <= 3 * largest


def test_idle_work_of_one_model_waits_for_the_clients_of_another(models, engines, thread):
    (background,) = engines[0].submit([replace(spec(models[0], 1), tier="shadow", idle=True)])
    thread.take_step()
    clients = engines[1].submit([spec(models[1], seed) for seed in range(3)])
    before = len(thread.waves)
    finish(thread, clients)
    assert {member for member, _ in thread.waves[before:]} == {engines[1]}
    assert not background.done()
    finish(thread, [background])


@pytest.mark.parametrize("kind", [{"background": True}, {"idle": True}], ids=["background", "idle"])
def test_work_that_yields_does_not_even_come_in_while_another_model_has_clients(models, engines, thread, kind):
    """It would take memory, and its texts' encoding the clients' time."""
    clients = engines[1].submit([spec(models[1], seed) for seed in range(3)])
    (yielding,) = engines[0].submit([replace(spec(models[0], 1), tier="shadow", **kind)])
    steps = 0
    while not all(future.done() for future in clients):
        thread.take_step()
        assert not engines[0].images
        steps += 1
    assert steps > 1
    finish(thread, [yielding])


def test_idle_work_does_not_even_come_in_while_another_model_has_background_work(models, engines, thread):
    (background,) = engines[1].submit([replace(spec(models[1], 2), background=True)])
    (idle,) = engines[0].submit([replace(spec(models[0], 1), tier="shadow", idle=True)])
    thread.take_step()
    assert engines[1].images
    assert not engines[0].images
    finish(thread, [background, idle])


def test_a_deadline_that_can_be_met_goes_before_the_other_models_turn(models, engines, thread, monkeypatch):
    engines[0].submit([spec(models[0], seed, MIXES[1]) for seed in range(8)])
    for _ in range(2):
        thread.take_step()
    (urgent,) = engines[1].submit([spec(models[1], 9, MIXES[1], deadline=1e12)])
    monkeypatch.setattr(engines[1], "hurries", lambda task, now: True)
    before = len(thread.waves)
    thread.take_step()
    assert thread.waves[before][0] is engines[1]
    finish(thread, [urgent])


def test_a_model_leaves_only_when_nothing_of_it_is_in_flight(models, engines, thread):
    futures = engines[0].submit([spec(models[0], seed) for seed in range(5)])
    others = engines[1].submit([spec(models[1], seed) for seed in range(5)])
    thread.take_step()
    gone = thread.leave(engines[0])
    while not all(future.done() for future in futures):
        assert not gone.done()
        thread.take_step()
    thread.take_step()
    assert gone.done()
    with pytest.raises(NotReady, match="unloaded"):
        engines[0].submit([spec(models[0], 1)])
    finish(thread, others)


def test_a_model_that_joins_warms_up_between_the_waves_of_another(models, thread, admission):
    thread.thread = SimpleNamespace(ident=1)  # as if it were started: the test takes its steps
    first, second = (ModelEngine(model, admission.beside(), 4, device_thread=thread) for model in models)
    thread.add(first)
    futures = first.submit([spec(models[0], seed, MIXES[1]) for seed in range(12)])
    second._first = [models[1].teacher(4)]
    warm, (own,) = thread.join(second), second.submit([spec(models[1], 3)])
    steps = 0
    while not warm.done():
        before = len(thread.waves)
        thread.take_step()
        steps += 1
        assert len(thread.waves) == before + 1, "the other model has its wave, whatever is warmed up"
    assert steps > 3
    assert not own.done()
    finish(thread, [own, *futures])
    torch.testing.assert_close(own.result().pixels, plain(models[1], spec(models[1], 3)), rtol=0, atol=1)


def test_a_model_that_left_has_given_its_weights_back_and_can_come_again(models, admission):
    thread = DeviceThread()
    engines = [
        ModelEngine(
            replace(models[0], network=UnrolledUNet(deepcopy(models[0].network.unet))), admission, 4, device_thread=thread
        )
        for _ in range(2)
    ]
    engines[0].start([models[0].teacher(4)])
    pixels = engines[0].submit([spec(models[0], 1)])[0].result(60).pixels
    (background,) = engines[0].submit([replace(spec(models[0], 1, MIXES[1]), tier="shadow", idle=True)])
    background.cancel()  # maybe while it is in flight
    engines[0].leave()
    assert {tensor.device.type for tensor in engines[0]._model.network.unet.parameters()} == {"meta"}
    engines[1].start([models[0].teacher(4)])
    assert torch.equal(engines[1].submit([spec(models[0], 1)])[0].result(60).pixels, pixels)
    engines[1].close()
    with pytest.raises(NotReady):
        engines[1].submit([spec(models[0], 1)])


def test_a_model_that_cannot_be_warmed_up_takes_nobody_with_it(models, admission, monkeypatch):
    thread = DeviceThread()
    first = ModelEngine(models[0], admission, 4, device_thread=thread)
    first.start()
    second = ModelEngine(models[1], admission.beside(), 4, device_thread=thread)
    monkeypatch.setattr(second._waves, "launch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        second.start([models[1].teacher(4)])
    assert first.submit([spec(models[0], 1)])[0].result(60).macs > 0
    first.close()


def test_the_work_of_all_models_counts_for_the_queues_bound_each_at_its_own_pace():
    one = Admission(max_seconds=10, pace=1.0)
    other = one.beside()
    other.measured(1, 0.5)
    one.enter("anna", 6)
    other.enter("bert", 6)
    assert one.seconds == other.seconds == 9
    with pytest.raises(Exception, match=r"the queue holds 9.0 s"):
        other.enter("anna", 4)
    with pytest.raises(Exception, match=r"the model is being loaded, for 8.0 s more"):
        other.enter("anna", 1, before=8.0)
    other.done("bert", 6)
    one.enter("bert", 3)
