"""The page that Prometheus reads: one for all workers, without the dead, without the past; and a finished image's books."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_model import small_model

from registry.schedule import Cost, Schedule, Segment
from server.batching.accounting import count_image
from server.batching.image_task import ImageSpec
from server.telemetry import exposition, metrics

END = "that is all"
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def read(page: str) -> dict[tuple[str, ...], float]:
    """(name, label values…) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture
def process(tmp_path):
    """Runs a program in a process of its own that shares metrics with all the others of this test; gives its output.

    The process lives until the test is over, or, if it is a dead one, ends at once.
    """
    with ExitStack() as ending:

        def run(program: str, dead: bool = False) -> str:
            environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": "."}
            program = f"from server.telemetry import metrics, exposition\n{program}\nprint({END!r}, flush=True); input()"
            worker = subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, **PIPES)
            ending.enter_context(worker)  # waits for it
            ending.callback(worker.kill)
            said = list(iter(worker.stdout.readline, f"{END}\n"))
            if dead:
                worker.kill()
                worker.wait()
            return "".join(said)

        yield run


WORKER = """
metrics.macs_total.labels("fast", "none", "full").inc({macs})
metrics.queue_images.set({queue})
metrics.queue_seconds.set({queue} / 2)
metrics.engine_up.set({up})
metrics.workers_up.set({up})
metrics.workers.set(2)
metrics.wave_rows.labels("full").observe(3)
metrics.schedule_info.labels("fast", "none", "old", "1").set({old})
metrics.schedule_info.labels("fast", "none", "new", "2").set(1)
"""
PAGE = "print(exposition.page().decode())"


def test_workers_are_added_up_and_the_worst_one_speaks_for_all(process):
    process(WORKER.format(macs=100, queue=4, up=1, old=1))
    page = read(process(WORKER.format(macs=20, queue=6, up=0, old=0) + PAGE))
    assert page["flexi_macs_total", "none", "full", "fast"] == 120
    assert page["flexi_wave_rows_count", "full"] == 2
    assert page["flexi_queue_images",] == 10
    assert page["flexi_queue_seconds",] == 3
    assert page["flexi_engine_up",] == 0
    assert (page["flexi_workers_up",], page["flexi_workers",]) == (1, 2)
    assert page["flexi_schedule_info", "none", "old", "fast", "1"] == 1, "one worker has not seen the promotion yet"


def test_what_is_in_force_no_more_leaves_the_page(process):
    page = read(process(WORKER.format(macs=1, queue=0, up=1, old=0) + PAGE))
    assert [key for key in page if key[0] == "flexi_schedule_info"] == [("flexi_schedule_info", "none", "new", "fast", "2")]


def test_dead_workers_keep_their_counts_and_lose_their_queue(process):
    process(WORKER.format(macs=100, queue=4, up=0, old=1), dead=True)
    page = read(process(f"{WORKER.format(macs=20, queue=6, up=1, old=0)}{PAGE}"))
    assert page["flexi_macs_total", "none", "full", "fast"] == 120
    assert page["flexi_queue_images",] == 6
    assert page["flexi_engine_up",] == 1
    assert (page["flexi_workers_up",], page["flexi_workers",]) == (1, 2), "that one is missing does not go with it"


def test_a_worker_that_never_served_leaves_no_files_and_takes_nobody_elses(process, tmp_path):
    process(WORKER.format(macs=100, queue=4, up=1, old=1))
    before = set(tmp_path.iterdir())
    process(f"{WORKER.format(macs=20, queue=6, up=0, old=0)}\nexposition.forget_this_process()", dead=True)
    assert set(tmp_path.iterdir()) == before != set()


def test_one_process_needs_no_folder_and_shows_only_our_metrics(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics.wave_rows.labels("full").observe(3)
    assert {key[0][:6] for key in read(exposition.page().decode())} == {"flexi_"}


@pytest.mark.parametrize(("rows", "priced_rows"), [(1, 1), (2, 1), (1, 2)])
def test_a_finished_image_that_kept_to_its_schedule_balances(tiny, rows, priced_rows):
    drift = drift_of(tiny, rows, priced_rows, ran={}, price=0)
    assert drift == {"steps": 0, "macs": 0}


def test_a_step_too_many_and_a_price_too_low_are_seen(tiny):
    assert drift_of(tiny, 2, 1, ran={"partial": 1}, price=0) == {"steps": 1, "macs": 0}
    assert drift_of(tiny, 2, 1, ran={}, price=-5) == {"steps": 0, "macs": 10}


def test_without_a_price_an_image_is_held_to_nothing(tiny):
    assert drift_of(tiny, 2, None, ran={}, price=0) == {"steps": 0, "macs": 0}


def drift_of(tiny, rows: int, priced_rows: int | None, ran: dict[str, int], price: int) -> dict[str, float]:
    """What the books say after one image that ran `ran` more steps than planned, by a document whose price is so wrong."""
    model = small_model(tiny)
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(partial=(1,), branch=2), Segment()))
    one_row = model.macs.of_program(model.compile(schedule), 1)
    if priced_rows:
        schedule = schedule.model_copy(
            update={"cost": Cost(macs=priced_rows * (one_row + price), rows=priced_rows, relative=0.5)}
        )
    spec = ImageSpec(model.compile(schedule), "a", "", 1.0 if rows == 1 else 2.0, 0, tier="books")
    task = SimpleNamespace(spec=spec, macs=rows * one_row, steps=Counter(schedule.counts()) + Counter(ran))
    before = books()
    count_image(task)
    return {name: value - before[name] for name, value in books().items()}


def books() -> dict[str, float]:
    page = read(exposition.page().decode())

    def total(name: str) -> float:
        return sum(value for key, value in page.items() if key[0] == name and "books" in key)

    return {
        "steps": total("flexi_finished_steps_total") - total("flexi_planned_steps_total"),
        "macs": total("flexi_image_macs_sum") - total("flexi_planned_macs_total"),
    }


def test_a_page_waits_for_the_file_of_a_process_that_starts_now(process, tmp_path, monkeypatch):
    process("metrics.queue_images.set(3)")
    new = tmp_path / "counter_1.db"
    new.touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(exposition.time, "sleep", lambda _: new.unlink())
    assert b"flexi_queue_images 3.0" in exposition.page()
