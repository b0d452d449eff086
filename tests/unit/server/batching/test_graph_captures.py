"""Graphs for what comes into force: captured between waves, before anybody waits for it, or not at all."""

from __future__ import annotations

import threading

import pytest
from fake_graphs import FakeGraphs
from server_model import small_model

from registry.schedule import Schedule, Segment
from server.batching.admission import Admission
from server.batching.image_task import ImageSpec
from server.batching.model_engine import ModelEngine
from server.telemetry import metrics

ROWS = 4
SIZES = 3  # 1, 2, 4


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


def schedule(model, branch) -> Schedule:
    segments = (Segment(partial=(1,), branch=branch), Segment())
    return Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)


def spec(model, seed, branch) -> ImageSpec:
    return ImageSpec(model.compile(schedule(model, branch)), "a", "", 2.0, seed)


@pytest.fixture
def graphs():
    return FakeGraphs()


@pytest.fixture
def engine(model, graphs):
    engine = ModelEngine(model, Admission(max_seconds=60), ROWS, graphs=graphs)
    engine.warm_up([schedule(model, 1)])
    yield engine
    if engine.alive:
        engine.close()


def launches(how: str) -> float:
    return metrics.waves_total.labels(how)._value.get()


def test_a_warm_up_captures_what_is_in_force(engine, graphs):
    assert len(graphs.captures) == 2 * SIZES, "full steps and branch 1"
    assert graphs.replays > 0, "its own waves are graphs already"
    assert metrics.cuda_graphs._value.get() == 2 * SIZES


def test_whoever_prepares_a_schedule_waits_until_its_waves_are_graphs(model, engine, graphs):
    engine.start()
    engine.prepare(schedule(model, 2))
    assert metrics.cuda_graphs._value.get() == 3 * SIZES
    before = launches("graph"), launches("eager")
    engine.submit([spec(model, 0, 2)])[0].result(30)
    assert launches("graph") == before[0] + 3, "each of its steps"
    assert launches("eager") == before[1]


def test_images_are_finished_between_two_captures(model, engine, graphs):
    """A schedule of many sizes comes into force while an image is made: neither waits for the other's end."""
    order, plain = [], graphs.capture

    def capture(call):
        order.append("capture")
        return plain(call)

    graphs.capture = capture
    (future,) = engine.submit([spec(model, 0, 1)])
    future.add_done_callback(lambda _: order.append("image"))
    waiting = threading.Thread(target=engine.prepare, args=(schedule(model, 2),))
    waiting.start()
    while not engine._captures.wanted:
        pass
    engine.start()
    waiting.join(60)
    assert not waiting.is_alive()
    future.result(30)
    assert "image" in order[1:-1]


def test_a_schedule_of_a_branch_that_is_not_in_force_runs_eagerly(model, engine):
    before = launches("eager")
    engine.start()
    engine.submit([spec(model, 0, 2)])[0].result(30)
    assert launches("eager") > before


def test_a_capture_that_fails_costs_speed_and_no_image(model, engine, graphs, caplog):
    graphs.error = RuntimeError("capturing failed")
    engine.start()
    engine.prepare(schedule(model, 2))
    assert "waves without one run eagerly" in caplog.text
    assert metrics.cuda_graphs._value.get() == 0
    assert engine.submit([spec(model, 0, 2)])[0].result(30).macs > 0
    engine.prepare(schedule(model, 1))


def test_waves_that_the_slots_have_no_room_for_are_not_captured(model, graphs):
    engine = ModelEngine(model, Admission(max_seconds=60), 64, cache_bytes=ROWS * model.slot_bytes(), graphs=graphs)
    engine.warm_up([schedule(model, 1)])
    assert len(graphs.captures) == 2 * SIZES


def test_nobody_waits_for_an_engine_that_stopped(model, engine):
    engine.start()
    engine.close()
    engine.prepare(schedule(model, 2))


def test_padding_is_nobodys_bill(model, engine):
    """Three rows of two images run as four: the fourth is counted apart."""
    counted = [
        metrics.macs_total.labels("custom", "none", "full")._value.get,
        metrics.padding_macs_total.labels("full")._value.get,
    ]
    before = [value() for value in counted]
    plain = ImageSpec(model.compile(schedule(model, 1)), "a", "", 1.0, 1)
    futures = engine.submit([spec(model, 0, 1)]) + engine.submit([plain])
    engine.start()
    for future in futures:
        future.result(30)
    full = model.macs.full.macs
    macs, padding = (value() - old for value, old in zip(counted, before, strict=True))
    assert macs == 2 * 3 * full
    assert padding in (0, full, 2 * full), "as the policy likes at each step: four rows, or two and one"
