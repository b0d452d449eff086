"""The engine: what comes of each image, and who fails with whom. Its thread is not started where a test takes the steps."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from server_model import small_model
from stepped_engine import Stepped

from engine.images import levels
from engine.program import Program
from engine.prompts import ClassPrompts
from engine.sampler import generate
from engine.unrolled import UnrolledUNet
from registry.errors import InvalidInput, Overloaded
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec, ImageTask, macs_before
from server.errors import GenerationFailed, NotReady
from server.requests.running import gather

MIXED = (Segment(partial=(1,), branch=2), Segment())


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def engine(model):
    return Stepped(model, Admission(max_seconds=60), max_wave_rows=4)


@pytest.fixture
def running(engine):
    engine.start()
    yield engine
    if engine.alive:
        engine.close()


def program(model, *segments) -> Program:
    return model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments))


def spec(model, seed=0, *, prompt="a", guidance=2.0, segments=MIXED) -> ImageSpec:
    return ImageSpec(program(model, *segments), prompt, "", guidance, seed)


def assert_the_same(pixels, others):
    """The same levels, but for those that lie between two and are rounded to either."""
    assert pixels.dtype == others.dtype == torch.uint8
    torch.testing.assert_close(pixels, others, rtol=0, atol=1)
    assert (pixels != others).float().mean() < 0.02


def finish(engine, futures, steps=50):
    for _ in range(steps):
        if all(future.done() for future in futures):
            return
        engine.take_step()
    raise AssertionError("not done")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_is_the_plain_loops(model, engine, guidance):
    wanted = spec(model, 5, guidance=guidance)
    others = [spec(model, 6), spec(model, 7, guidance=1.0, segments=(Segment(),) * 4)]
    futures = engine.submit([wanted, *others])
    finish(engine, futures)
    negative = model.negative([""]) if guidance != 1 else None
    latent = generate(model.network, wanted.program, model.noise(5)[None], model.encode(["a"]), negative, guidance)
    result = futures[0].result()
    assert_the_same(result.pixels, levels(model.decode(latent)[0]))
    assert result.macs == model.macs.of_program(wanted.program, wanted.unet_rows)
    assert result.steps == wanted.program.schedule.counts()


def test_a_cancelled_image_frees_its_memory(model, engine):
    first, second = engine.submit([spec(model, 1), spec(model, 2)])
    engine.take_step()
    assert len(engine._waves.tasks) == 2
    first.cancel()
    engine.take_step()
    assert len(engine._waves.tasks) == len(engine._images) == 1
    finish(engine, [second])
    assert engine._waves.tasks == []


def test_an_image_cancelled_while_waiting_never_runs(model, engine):
    (future,) = engine.submit([spec(model)])
    future.cancel()
    engine.take_step()
    assert not engine._queue
    assert not engine._images


def test_a_prompt_that_cannot_be_encoded_fails_alone(model, engine):
    good, bad = engine.submit([spec(model, prompt="fine"), spec(model, prompt="poison")])
    finish(engine, [good, bad])
    assert good.result().macs > 0
    with pytest.raises(GenerationFailed, match="encoding"):
        bad.result()


def test_a_latent_that_is_not_finite_fails_alone(model, engine):
    good, bad = engine.submit([spec(model, 1), spec(model, 2)])
    engine.take_step()
    tasks = {task.spec.seed: task for task in engine._images}
    engine._waves.slots.at().put(tasks[2].slots[0], torch.full((4, 8, 8), float("nan")), model.encode(["a"]))
    finish(engine, [good, bad])
    assert good.result().macs > 0
    with pytest.raises(GenerationFailed, match="finite"):
        bad.result()


def test_a_decode_error_fails_alone(model, engine, monkeypatch):
    good, bad = engine.submit([spec(model, 1), spec(model, 2)])
    engine.take_step()
    (culprit,) = [task for task in engine._images if task.spec.seed == 2]
    plain = type(model).decode_later

    def decode(self, latents):
        if any(torch.equal(latent, culprit.latent) for latent in latents):
            raise RuntimeError("cannot decode")
        return plain(self, latents)

    monkeypatch.setattr(type(model), "decode_later", decode)
    finish(engine, [good, bad])
    assert good.exception() is None
    with pytest.raises(GenerationFailed, match="decoding"):
        bad.result()


def test_the_log_says_whose_image_failed_and_not_its_prompt(model, engine, monkeypatch, caplog):
    poisoned = replace(spec(model, prompt="poison"), request_id="poisoned")
    unlucky = replace(spec(model, prompt="a secret"), request_id="unlucky")
    monkeypatch.setattr(engine._waves.network, "partial", lambda *_: 1 / 0)
    finish(engine, engine.submit([poisoned, unlucky]))
    said = {record.getMessage(): record.fields for record in caplog.records}
    assert said == {"encoding failed": {"request_id": "poisoned"}, "denoising failed": {"request_id": "unlucky"}}
    assert "a secret" not in caplog.text


def test_an_error_that_quotes_the_prompt_is_told_to_its_client_and_not_to_the_log(model, caplog):
    engine = Stepped(replace(model, prompts=ClassPrompts(4, model.device, torch.ones(4, 6), 3)), Admission(60), max_wave_rows=4)
    good, bad = engine.submit([spec(model, prompt="1"), replace(spec(model, prompt="a secret"), request_id="unlucky")])
    finish(engine, [good, bad])
    assert good.exception() is None
    with pytest.raises(InvalidInput, match="this model draws classes"):
        bad.result()
    assert [(record.getMessage(), record.fields) for record in caplog.records] == [
        ("encoding failed", {"request_id": "unlucky", "code": "invalid_input", "param": "prompt"})
    ]
    assert "a secret" not in caplog.text


def test_an_exception_in_a_wave_fails_its_images_only(model, engine, monkeypatch):
    """The partial wave breaks: the image that needs one fails, the one of full steps goes on."""
    bad, good = engine.submit([spec(model, 1), spec(model, 2, segments=(Segment(),) * 4)])

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._waves.network, "partial", broken)
    finish(engine, [good, bad])
    assert good.result().steps["full"] == 4
    with pytest.raises(GenerationFailed, match="denoising"):
        bad.result()
    assert not engine._images
    assert engine._waves.tasks == []


def gives_up(engine, model):
    """Each image fails, and after some of them it takes no more."""
    for seed in range(20):
        try:
            (future,) = engine.submit([spec(model, seed)])
        except NotReady:
            break
        assert future.exception(timeout=60) is not None
    else:
        pytest.fail("it went on for ever")
    engine._device_thread.thread.join(timeout=60)
    assert not engine.alive


def test_an_engine_in_which_every_wave_fails_asks_to_be_restarted(model, running, monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("device lost")

    monkeypatch.setattr(running._waves.network, "full", lost)
    gives_up(running, model)


def test_the_thread_outlives_a_bug_in_a_step(model, running, monkeypatch):
    plain, breakages = running._denoising.launch, [RuntimeError("bug")]

    def sometimes():
        if breakages:
            raise breakages.pop()
        return plain()

    monkeypatch.setattr(running._denoising, "launch", sometimes)
    (first,) = running.submit([spec(model)])
    with pytest.raises(GenerationFailed):
        first.result(timeout=60)
    (second,) = running.submit([spec(model)])
    assert second.result(timeout=60).macs > 0
    assert running.alive


def test_the_queue_is_bounded_and_a_request_is_taken_whole_or_not(model):
    image_macs = model.macs.of_program(spec(model).program, 2)
    engine = Stepped(model, Admission(max_seconds=8.5, pace=1 / image_macs), max_wave_rows=4)  # a second an image
    engine.submit([spec(model, seed) for seed in range(6)])
    with pytest.raises(Overloaded) as refused:
        engine.submit([spec(model, seed) for seed in range(3)])
    assert refused.value.retry_after >= 1
    assert len(engine._queue) == 6
    engine.submit([spec(model, 8), spec(model, 9)])


@pytest.mark.parametrize("end", ["done", "cancelled", "failed"])
def test_no_work_is_owed_when_all_have_left(model, end, monkeypatch):
    admission = Admission(max_seconds=60, pace=1.0)
    engine = Stepped(model, admission, max_wave_rows=4)
    futures = engine.submit([spec(model, seed) for seed in range(6)])
    assert admission.seconds == 6 * model.macs.of_program(spec(model).program, 2)
    engine.take_step()
    if end == "cancelled":
        for future in futures:
            future.cancel()
        engine.take_step()
    else:
        if end == "failed":
            monkeypatch.setattr(model.network, "partial", lambda *_: 1 / 0)
        finish(engine, futures)
    assert admission.seconds == 0


def test_previews_are_the_clean_latents_on_the_way(model, engine):
    seen = []
    wanted = replace(spec(model, 5, segments=(Segment(),) * 4), previews=3)
    futures = engine.submit([wanted, spec(model, 6)], lambda *preview: seen.append(preview))
    clean = {}  # by position
    while not futures[0].done():
        engine.take_step()
        for task in engine._images:
            if task.spec is wanted:
                clean[task.position] = engine._waves.slots.at().clean(task.slots[0])
    assert [(spec, index) for spec, index, _ in seen] == [(wanted, 0), (wanted, 1), (wanted, 2)]
    for (_, _, pixels), latent in zip(seen, (clean[position] for position in (1, 2, 3)), strict=True):
        assert_the_same(pixels, levels(model.decode(latent[None])[0]))
    finish(engine, futures)


def test_a_preview_that_fails_costs_nobody_an_image(model, engine):
    def broken(*_):
        raise RuntimeError("nobody listens")

    futures = engine.submit([replace(spec(model, 5), previews=1)], broken)
    finish(engine, futures)
    assert futures[0].result().macs > 0


def test_progress_counts_the_computed_steps_of_each_image_that_have_landed(model, engine):
    wanted = [spec(model, seed, segments=(Segment(partial=(1,), branch=1),) * 2) for seed in (5, 6)]
    seen = []
    futures = engine.submit(wanted, None, lambda one, step: seen.append((one.seed, step)))
    finish(engine, futures)
    assert sorted(seen) == [(seed, step) for seed in (5, 6) for step in (1, 2, 3, 4)]


def test_a_listener_to_progress_that_fails_costs_no_image(model, engine):
    def broken(*_):
        raise RuntimeError("it does not listen")

    futures = engine.submit([spec(model, 5)], None, broken)
    finish(engine, futures)
    assert futures[0].result().macs > 0


@pytest.mark.parametrize(("previews", "positions"), [(0, []), (1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_previews_are_spread_and_never_the_image_itself(model, previews, positions):
    wanted = replace(spec(model, segments=(Segment(),) * 4), previews=previews)
    task = ImageTask(wanted, 0.0, macs_before(wanted, model.macs))
    assert task.preview_at == {position: i for i, position in enumerate(positions)}


def test_whoever_leaves_is_followed_by_another_of_its_kind(model):
    """So the work beside a request is that of a steady load, and not of one that runs dry."""
    wanted = spec(model, segments=(Segment(),) * 4)
    task = ImageTask(wanted, 0.0, macs_before(wanted, model.macs))
    whole = task.remaining_macs
    assert [task.next_macs(steps) for steps in (0, 1, 4, 6, 8)] == [0, whole // 4, whole, whole * 3 // 2, 2 * whole]


def test_images_in_flight_are_bounded_too(model, engine):
    futures = engine.submit([spec(model, seed) for seed in range(12)])
    engine.take_step()
    assert (len(engine._images), len(engine._queue)) == (8, 4)
    finish(engine, futures)


def test_memory_bounds_what_is_in_flight(model):
    """One slot: two latents of 4×8×8 and the largest cached feature, all float32."""
    slot_bytes = 4 * (2 * 4 * 8 * 8 + max(c * h * w for c, h, w in model.macs.features.values()))
    engine = Stepped(model, Admission(max_seconds=60), max_wave_rows=4, cache_bytes=5 * slot_bytes + 7)
    futures = engine.submit([spec(model, seed) for seed in range(4)])
    engine.take_step()
    assert (len(engine._images), len(engine._queue)) == (2, 2)
    finish(engine, futures)
    with pytest.raises(InvalidInput, match="cache_mib"):
        Stepped(model, Admission(max_seconds=60), max_wave_rows=4, cache_bytes=2 * slot_bytes - 1)


def test_a_tier_that_floods_does_not_shut_out_another(model, engine):
    flood = engine.submit([replace(spec(model, seed), tier="best") for seed in range(14)])
    engine.take_step()
    (late,) = engine.submit([replace(spec(model, 9), tier="draft")])
    while not late.done():
        engine.take_step()
    assert sum(future.done() for future in flood) <= 9, "eight were in flight already, and one advances in step with it"
    finish(engine, flood)


def test_gather_gives_up_all_when_one_fails(model, running):
    specs = [spec(model, 1, prompt="poison"), *(spec(model, seed) for seed in range(2, 6))]

    async def go():
        with pytest.raises(GenerationFailed):
            await gather(running.submit(specs))
        while running._images or running._queue:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(go(), 60))


def test_gather_can_be_cancelled(model, running):
    async def go():
        task = asyncio.create_task(gather(running.submit([spec(model, seed) for seed in range(8)])))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while running._images or running._queue:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(go(), 60))


def test_close_fails_what_is_left(model, running):
    futures = running.submit([spec(model, seed) for seed in range(8)])
    running.close()
    for future in futures:
        try:
            assert future.exception(timeout=60) is None or isinstance(future.exception(), NotReady)
        except CancelledError:
            raise AssertionError("closing must say why") from None
    with pytest.raises(NotReady):
        running.submit([spec(model)])


def idle(model, seed=0) -> ImageSpec:
    return replace(spec(model, seed, segments=(Segment(),) * 4), tier="shadow", idle=True)


def test_idle_work_stands_still_while_a_client_is_served(model, engine):
    (background,) = engine.submit([idle(model, 1)])
    engine.take_step()
    (task,) = engine._images
    assert task.position == 1
    (client,) = engine.submit([spec(model, 2, segments=(Segment(),) * 4)])
    for _ in range(4):
        assert not client.done()
        engine.take_step()
    assert client.done(), "a wave was not the client's"
    assert task.position == 1
    finish(engine, [background])
    assert background.result().macs == model.macs.of_program(idle(model).program, 2)


def test_idle_work_makes_room_for_clients_and_ends_as_it_would_have(model, engine):
    (alone,) = engine.submit([idle(model, 1)])
    finish(engine, [alone])
    (background,) = engine.submit([idle(model, 1)])
    engine.take_step()
    clients = engine.submit([spec(model, seed) for seed in range(8)])  # all the memory there is
    engine.take_step()
    assert {task.spec.idle for task in engine._images} == {False}
    finish(engine, [*clients, background])
    assert_the_same(background.result().pixels, alone.result().pixels)
    assert background.result().steps == alone.result().steps


def test_idle_work_waits_for_clients_and_counts_in_no_queue(model):
    admission = Admission(max_seconds=1, pace=1.0)
    engine = Stepped(model, admission, max_wave_rows=4)
    background = engine.submit([idle(model, seed) for seed in range(3)])
    assert admission.seconds == len(engine._queue) == 0
    (client,) = engine.submit([spec(model, 9)])
    finish(engine, [client])
    assert not any(future.done() for future in background)
    background[0].cancel()
    finish(engine, background)
    assert admission.seconds == 0


def test_closing_ends_idle_work(model, running):
    futures = running.submit([idle(model, seed) for seed in range(5)])
    running.close()
    assert all(future.done() for future in futures)


class Behind(UnrolledUNet):
    """A device that works behind the host: it is past a fence only when somebody has waited for it. Notes what is asked."""

    def __init__(self, unet):
        super().__init__(unet)
        self.asked, self.faults = [], []

    def fence(self):
        return BehindFence(self)

    def full(self, *given, **options):
        self.asked.append("wave")
        return super().full(*given, **options)

    def partial(self, *given):
        self.asked.append("wave")
        return super().partial(*given)


class BehindFence:
    def __init__(self, device):
        self.device, self.at, self.passed = device, device.asked.count("wave"), False

    def done(self):
        return self.passed

    def wait(self):
        if self.device.faults:
            raise self.device.faults.pop()
        if not self.passed:
            self.device.asked.append(f"waited for {self.at}")
        self.passed = True

    def since(self, earlier):
        return 1e-3


@pytest.fixture
def behind(model):
    made = replace(model, network=Behind(model.network.unet))
    vars(made)["macs"] = model.macs  # counted once
    return made


@pytest.fixture
def ahead(behind):
    """An engine ahead of its device."""
    return Stepped(behind, Admission(max_seconds=60, pace=1.0), max_wave_rows=4)


def test_a_wave_is_launched_while_the_one_before_is_at_work(model, behind, ahead):
    (future,) = ahead.submit([spec(model, segments=(Segment(),) * 4)])
    finish(ahead, [future])
    asked = [call for call, _ in groupby(behind.network.asked)]  # a wave and its images have a fence each
    assert behind.network.asked[:2] == ["wave", "wave"]
    assert asked == ["wave", "waited for 1", "wave", "waited for 2", "wave", "waited for 3", "waited for 4"]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_of_a_device_behind_the_host_is_the_same(model, engine, ahead, guidance):
    specs = [spec(model, seed, guidance=guidance) for seed in range(7)]
    specs += [replace(spec(model, seed, segments=(Segment(),) * 4), previews=2) for seed in range(7, 10)]
    seen = {engine: [], ahead: []}
    results = {}
    for runner, previews in seen.items():
        futures = runner.submit(specs, lambda spec, index, _, previews=previews: previews.append((spec.seed, index)))
        finish(runner, futures)
        results[runner] = [future.result() for future in futures]
    for one, other in zip(*results.values(), strict=True):
        assert_the_same(one.pixels, other.pixels)
        assert (one.macs, one.steps) == (other.macs, other.steps)
    assert sorted(seen[engine]) == sorted(seen[ahead])
    assert ahead._admission.seconds == 0


def test_who_leaves_while_the_device_is_at_work_gets_nothing_and_owes_nothing(model, ahead):
    first, second = ahead.submit([spec(model, 1, segments=(Segment(),) * 2), spec(model, 2, segments=(Segment(),) * 2)])
    ahead.take_step()
    ahead.take_step()  # the last wave of both is at work
    first.cancel()
    finish(ahead, [second])
    assert first.cancelled()
    assert second.result().macs > 0
    ahead.take_step()
    assert not ahead._images
    assert ahead._waves.slots.free == ahead._waves.slots.capacity
    assert ahead._admission.seconds == 0


def test_a_latent_that_is_not_finite_is_found_when_its_wave_lands(model, ahead):
    good, bad = ahead.submit([spec(model, 1), spec(model, 2)])
    ahead.take_step()
    tasks = {task.spec.seed: task for task in ahead._images}
    ahead._waves.slots.at().put(tasks[2].slots[0], torch.full((4, 8, 8), float("nan")), model.encode(["a"]))
    finish(ahead, [good, bad])
    assert good.result().macs > 0
    with pytest.raises(GenerationFailed, match="finite"):
        bad.result()


def test_who_is_not_finite_fails_alone_though_the_next_wave_has_finished_another(model, behind, ahead, monkeypatch):
    """When the wave that finishes the first one lands, the wave that finishes the second one has been launched."""
    plain = type(behind).noise
    monkeypatch.setattr(type(behind), "noise", lambda self, seed, size: plain(self, seed) * (float("nan") if seed == 1 else 1))
    bad, good = ahead.submit([spec(model, seed, segments=(Segment(),) * seed) for seed in (1, 2)])
    finish(ahead, [bad, good])
    assert good.result().macs > 0
    with pytest.raises(GenerationFailed, match="finite"):
        bad.result()


def test_a_lost_device_ends_the_engine_though_no_wave_can_be_formed(model, behind, ahead, monkeypatch):
    """Newcomers fail before they are in a wave; that is not their prompts' fault."""
    ahead.start()
    assert ahead.submit([spec(model)])[0].result(timeout=60).macs > 0

    def lost(*_):
        raise RuntimeError("device lost")

    monkeypatch.setattr(type(behind), "noise", lost)
    monkeypatch.setattr(BehindFence, "done", lost)
    gives_up(ahead, model)


def test_a_newcomer_that_the_device_has_no_room_for_leaves_nothing_behind(model, engine, monkeypatch):
    plain, breakages = engine._waves.slots.at().put, [RuntimeError("out of memory")] * 2

    def put(slot, *state):
        if slot > 1 and breakages:
            raise breakages.pop()
        plain(slot, *state)

    monkeypatch.setattr(engine._waves.slots.at(), "put", put)
    futures = engine.submit([spec(model, seed) for seed in range(2)])
    finish(engine, futures)
    assert [future.exception() is None for future in futures] == [False, True], "each was tried alone"
    assert engine._waves.slots.free == engine._waves.slots.capacity
    assert not engine._images
    assert engine._admission.seconds == 0


def test_a_device_that_fails_behind_the_host_fails_what_is_in_flight_and_nothing_later(model, behind, ahead):
    ahead.start()
    behind.network.faults.append(RuntimeError("device-side assert"))
    with pytest.raises(GenerationFailed):
        ahead.submit([spec(model)])[0].result(timeout=60)
    assert ahead.submit([spec(model)])[0].result(timeout=60).macs > 0
    ahead.close()
    assert ahead._admission.seconds == 0


def test_idle_work_gives_up_its_place_while_its_wave_is_at_work(model, ahead):
    (background,) = ahead.submit([idle(model, 1)])
    ahead.take_step()
    clients = ahead.submit([spec(model, seed) for seed in range(8)])  # all the memory there is
    ahead.take_step()
    assert {task.spec.idle for task in ahead._images} == {False}
    finish(ahead, [*clients, background])
    assert background.result().macs == model.macs.of_program(idle(model).program, 2)
