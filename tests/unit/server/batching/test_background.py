"""Background work fills waves of its own while no other client is there, lies still when one comes, and costs what it costs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from server_model import small_model
from stepped_engine import Stepped

from engine.program import Program
from registry.errors import Overloaded
from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.telemetry import metrics


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def engine(model):
    """Room for eight guided images; a wave has two of them."""
    return Stepped(model, Admission(max_seconds=math.inf), max_wave_rows=4)


def program(model) -> Program:
    return model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * 4))


def client(model, seed) -> ImageSpec:
    return ImageSpec(program(model), "a", "", 2.0, seed)


def background(model, seed) -> ImageSpec:
    return replace(client(model, seed), background=True)


def finish(engine, futures, steps=200):
    for _ in range(steps):
        if all(future.done() for future in futures):
            return
        engine.take_step()
    raise AssertionError("not done")


def positions(engine):
    return [task.position for task in engine._images]


def test_background_work_fills_one_wave_and_no_more(model, engine):
    futures = engine.submit([background(model, seed) for seed in range(6)])
    engine.take_step()
    assert positions(engine) == [1, 1], "two guided images are four rows"
    finish(engine, futures)
    assert {future.result().macs for future in futures} == {model.macs.of_program(program(model), 2)}


def test_it_lies_still_while_any_other_client_is_served_and_loses_nothing(model, engine):
    held = engine.submit([background(model, seed) for seed in range(2)])
    engine.take_step()
    ran = counted()
    (first,) = engine.submit([client(model, 8)])
    engine.take_step()
    (second,) = engine.submit([client(model, 9)])
    while not (first.done() and second.done()):
        engine.take_step()
        assert positions(engine)[:2] == [1, 1]
    assert not any(future.done() for future in held)
    finish(engine, held)
    assert counted() - ran == sum(future.result().macs for future in (first, second)) + sum(
        future.result().macs * 3 // 4 for future in held
    ), "no step ran twice"


def counted() -> float:
    return sum(sample.value for sample in metrics.macs_total.collect()[0].samples if sample.name.endswith("_total"))


def test_it_waits_for_clients_that_came_later_and_idle_work_waits_for_it(model, engine):
    order = []
    specs = {
        "idle": replace(client(model, 1), idle=True),
        "background": background(model, 2),
        "client": client(model, 3),
    }
    futures = []
    for name, wanted in specs.items():
        (future,) = engine.submit([wanted])
        future.add_done_callback(lambda _, name=name: order.append(name))
        futures.append(future)
    finish(engine, futures)
    assert order == ["client", "background", "idle"]


def test_only_as_much_of_it_leaves_as_clients_need_room_for_and_begins_anew(model, engine):
    held = engine.submit([background(model, seed) for seed in range(2)])
    engine.take_step()
    alone = engine.submit([client(model, seed) for seed in range(10, 17)])  # seven of eight places
    engine.take_step()
    tasks = [task for task in engine._images if task.spec.background]
    assert len(tasks) == 1, "one had to leave, and one could stay"
    assert engine._admission.background_seconds == engine._admission.seconds_per_mac * (
        2 * model.macs.of_program(program(model), 2) - tasks[0].macs
    ), "what the other had run is to run again"
    finish(engine, [*alone, *held])
    assert {future.result().macs for future in held} == {alone[0].result().macs}, "billed once"
    assert engine._admission.seconds == engine._admission.background_seconds == 0


def test_idle_work_lies_still_for_background_work_and_is_timed_by_its_own_waves_alone(model, engine):
    (idle,) = engine.submit([replace(client(model, 1), idle=True)])
    engine.take_step()
    (task,) = engine._images
    alone = task.wave_seconds
    held = engine.submit([background(model, seed) for seed in range(2, 5)])  # more than one wave has room for
    while not all(future.done() for future in held):
        engine.take_step()
        assert (task.position, task.wave_seconds) == (1, alone)
    finish(engine, [idle])
    assert idle.result().macs == held[0].result().macs, "no step ran twice"


@pytest.mark.parametrize("kind", ["background", "idle"])
def test_those_leave_first_that_lose_least_and_idle_work_before_background_work_whatever_it_loses(model, engine, kind):
    """One is further than the other."""
    (further,) = engine.submit([replace(client(model, 1), **{kind: True})])
    engine.take_steps(2)  # idle work takes none beside the other
    (other,) = engine.submit([background(model, 2)])
    while len(engine._images) < 2:
        engine.take_step()
    (first, second) = engine._images
    assert (first.future, second.future) == (further, other)
    assert first.macs > second.macs > 0
    leaves, stays = (second, first) if kind == "background" else (first, second)
    assert engine._images.yielding == [leaves, stays]
    alone = engine.submit([client(model, seed) for seed in range(10, 17)])  # seven of eight places
    engine.take_step()
    assert [task for task in engine._images if task.yields] == [stays]
    finish(engine, [*alone, further, other])


def test_it_has_a_bound_of_its_own_and_keeps_no_client_out(model):
    admission = Admission(max_seconds=1, pace=1.0)
    engine = Stepped(model, admission, max_wave_rows=4)
    engine.submit([background(model, 1)])
    with pytest.raises(Overloaded):
        engine.submit([background(model, 2)])
    engine.submit([client(model, 3)])
    with pytest.raises(Overloaded):
        engine.submit([client(model, 4)])
    engine.submit([replace(client(model, 5), idle=True)])


@pytest.mark.parametrize("steps", [0, 1])
def test_cancelled_background_work_leaves_nothing_behind(model, engine, steps):
    futures = engine.submit([background(model, seed) for seed in range(3)])
    for _ in range(steps):
        engine.take_step()
    for future in futures:
        future.cancel()
    engine.take_step()
    assert len(engine._images) == 0
    assert engine._admission.background_seconds == 0
    assert engine._queue.take_background(lambda task: True, 8) == []


def test_no_promise_to_a_client_counts_it(model, engine):
    engine._admission.measured(1, 1.0)
    before = engine.forecast(program(model), 2, 1, "custom")
    engine.submit([background(model, seed) for seed in range(4)])
    assert engine.forecast(program(model), 2, 1, "custom") == before
    engine.take_step()
    assert engine.forecast(program(model), 2, 1, "custom") == pytest.approx(before, rel=0.5)
    assert engine._admission.background_seconds > 0


def test_its_waiting_looks_like_no_slow_server(model, engine):
    finish(engine, engine.submit([client(model, 0)]))
    before = counts()
    finish(engine, engine.submit([background(model, 1)]))
    after = counts()
    assert {stage for stage in after if after[stage] != before[stage]} == {"encode", "decode"} & set(after)


def counts():
    """By stage, of all models that other tests in this process worked for."""
    sums = Counter[str]()
    for sample in metrics.stage_seconds.collect()[0].samples:
        if sample.name.endswith("_count"):
            sums[sample.labels["stage"]] += sample.value
    return sums
