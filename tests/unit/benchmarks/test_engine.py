"""The engine's benchmark: what its figures mean and what of them survives; the figures themselves are for a quiet machine."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.engine import competitors, equality, host, images, sections, workload
from benchmarks.engine.__main__ import app
from benchmarks.engine.competitors import Competitor, Field, Run
from benchmarks.engine.goals import GOALS, judged
from benchmarks.engine.report import BenchmarkReport
from benchmarks.engine.result import FULL, TEACHER, BenchmarkResult, BenchmarkResults, partial_step
from benchmarks.engine.timing import TimeUp, limited, side_by_side
from benchmarks.engine.workload import UNIFORM, Source, UniformSchedule
from engine import random_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("model") / "tiny"
    random_model.write("tiny", out, "float32")
    return out


@pytest.fixture(scope="module")
def field(folder: Path) -> Field:
    torch.set_num_threads(1)
    source = Source(folder)
    return Field(source, source.workload(), compiled=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (sections, "ROWS", (2,)),
        (sections, "COUNTS", (1,)),
        (workload, "STEPS", 10),
        (competitors, "STEPS", 10),
        (sections, "UNIFORM", (UniformSchedule(10), UniformSchedule(2, (3,), 1))),
        (images, "COUNTS", (1,)),
        (host, "ROWS", (32,)),
        (host, "SCHEDULE", UniformSchedule(2, (1, 2, 3, 4), 1)),
        (equality, "ROWS", 4),
        (equality, "SOLVERS", ("ddim",)),
        (equality, "UNIFORM", (UniformSchedule(2, (3,), 1),)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "section: there is no nonsense; there are compile, steps"),
        (["steps", "--repeats", "0"], "repeats: repeats, threads, limit and latent must be at least 1"),
    ],
)
def test_what_it_cannot_measure_is_said_in_one_line(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr


@pytest.mark.usefixtures("small")
def test_it_measures_everybody_side_by_side_and_prints_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    asked = ["steps", "generations", "host", "images", "--repeats", "1", "--model", str(folder), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert {name: end["fault"] for name, end in document["sections"].items()} == dict.fromkeys(asked[:4], "")
    assert [goal["said"] for goal in document["goals"] if goal["card"]] != []
    assert all("not measured here" in goal["said"] for goal in document["goals"] if goal["card"])
    results = document["results"]
    assert all(one["values"] and min(one["values"]) > 0 for one in results)
    who = {(one["section"], one["what"]): {two["who"] for two in results if two["what"] == one["what"]} for one in results}
    for competition in (("steps", FULL), ("generations", TEACHER), ("images", "decoder")):
        assert {"ours", "diffusers"} <= who[competition]
    same = [one["note"] for one in results if one["who"] == "diffusers" and one["section"] in ("steps", "generations")]
    assert len(same) == 2
    assert all("from ours" in note or note == "the same digits" for note in same)
    operations = {
        one["who"]: one["values"][0] for one in results if one["what"].startswith(host.OPERATIONS) and FULL in one["what"]
    }
    assert operations[host.SILENT] < operations["ours"] / 4


@pytest.mark.usefixtures("small")
def test_waves_are_held_against_the_sampler_and_graphs_against_eager_waves(field: Field) -> None:
    found = {one.what: one for one in sections.SECTIONS["equality"](field, 1)}
    assert 0 < found["waves − sampler"].values[0] < 1e-5
    assert found["captured − eager"].values == (0.0,)


class _Refusing(Competitor):
    def full(self, rows: int) -> Run | None:
        raise RuntimeError("no such kernel")


class _Slow(Competitor):
    """The time is over while it compiles, whatever the clock says."""

    def full(self, rows: int) -> Run | None:
        signal.raise_signal(signal.SIGALRM)
        return None


def test_who_cannot_compile_in_time_competes_no_more_and_nobody_else_is_kept_from_it(field: Field) -> None:
    ours = field.all[0]
    refusing, slow = _Refusing("refusing", field.workload, True), _Slow("slow", field.workload, True)
    competing = Field(field.source, field.workload, compiled=False)
    competing.all[:] = [ours, refusing, slow]
    found = list[BenchmarkResult]()
    with pytest.raises(TimeUp), limited(60):
        found.extend(sections.compile_times(competing, 1))
    assert [(one.who, one.note) for one in found] == [("refusing", "failed: no such kernel")]
    assert competing.all == [ours]


@pytest.mark.usefixtures("small")
def test_a_failure_of_one_competitor_is_noted_and_the_others_are_measured(field: Field) -> None:
    competing = Field(field.source, field.workload, compiled=False)
    competing.all[:] = [field.all[0], _Refusing("refusing", field.workload)]
    notes = {one.who: one.note for one in sections.steps(competing, 1) if one.what == FULL}
    assert notes == {"ours": "", "refusing": "failed: no such kernel"}


def test_a_section_that_fails_keeps_what_it_has_and_the_next_one_begins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
        yield BenchmarkResult("failing", "first", 1, "ours", (1.0,))
        raise RuntimeError("the device is on fire")

    def endless(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
        yield BenchmarkResult("endless", "second", 1, "ours", (2.0,))
        time.sleep(60)

    def last(field: Field, repeats: int) -> Iterator[BenchmarkResult]:
        yield BenchmarkResult("last", "third", 1, "ours", (3.0,))

    monkeypatch.setattr(sections, "SECTIONS", {"failing": failing, "endless": endless, "last": last})
    out = tmp_path / "results.json"
    done = CliRunner().invoke(app, ["--model", str(folder), "--limit", "1", "--out", str(out)])
    assert done.exit_code == 1
    document = json.loads(out.read_text())
    assert [one["what"] for one in document["results"]] == ["first", "second", "third"]
    faults = {name: end["fault"] for name, end in document["sections"].items()}
    assert faults == {"failing": "failed: the device is on fire", "endless": "its 1 s were over", "last": ""}
    assert "failing: failed: the device is on fire" in done.stdout


def test_the_file_holds_each_result_as_soon_as_it_is_there(tmp_path: Path) -> None:
    report = BenchmarkReport({"model": "m"}, "cpu", tmp_path / "results.json")
    for number in (1, 2):
        report.add(BenchmarkResult("steps", FULL, number, "ours", (0.5,), macs=10**12))
        written = json.loads((tmp_path / "results.json").read_text())
        assert [one["count"] for one in written["results"]] == list(range(1, number + 1))
    assert written["results"][0]["tflops"] == 4.0  # 2 · 10¹² operations in half a second


def test_goals_follow_from_times_and_macs_of_one_moment() -> None:
    results = BenchmarkResults()
    for what, who, values, macs in (
        (FULL, "diffusers", (8.0, 80.0), 100),
        (FULL, "diffusers, compiled", (2.0, 20.0), 100),
        (FULL, "ours", (8.0, 80.0), 100),
        (FULL, "ours, compiled and captured", (1.8, 18.0), 100),  # 0.9 of compiled diffusers' in both repeats
        (partial_step(1), "ours, compiled and captured", (0.22, 2.2), 10),  # 0.11 of it, where the share of MACs is 0.1
    ):
        results.all.append(BenchmarkResult("steps", what, 2, who, values, macs))
    for what, macs, seconds in (
        (TEACHER, 100, 10.0),
        (UNIFORM[1].name, 25, 2.5),  # as fast as its MACs say
        (UNIFORM[2].name, 40, 5.0),  # 2 times as fast, where MACs say 2.5
    ):
        results.all.append(BenchmarkResult("generations", what, 1, "ours, compiled and captured", (seconds,), macs * 10**12))
    results.all.append(BenchmarkResult("host", host.WAVE, 32, host.SILENT, (0.0004,)))
    figures = {one.goal.what: one for one in judged(results, "cuda")}
    full = figures["guided full step of one image / compiled diffusers'"]
    assert (full.value, full.met) == (pytest.approx(0.9), True)
    share = figures["partial step s=1 / its share of MACs of compiled diffusers' full one"]
    assert (share.value, share.met) == (pytest.approx(1.1), False)
    speed = figures["speed-up by the clock / in MACs, images: 1"]
    assert (speed.value, speed.met) == (pytest.approx(0.8), False)
    assert figures["host's part of a wave of 32 rows, ms"].value == pytest.approx(0.4)
    assert figures["full step, 2 rows / unet(…), both eager"].value == pytest.approx(1.0)
    assert figures["TFLOP/s in waves of 16 rows"].said == "not measured here"
    on_cpu = {one.goal.what: one.met for one in judged(results, "cpu")}
    assert {on_cpu[goal.what] for goal in GOALS if goal.card} == {None}
    assert on_cpu["host's part of a wave of 32 rows, ms"] is True


def test_a_rival_is_the_strongest_for_the_same_work_and_partial_steps_are_held_against_full_ones() -> None:
    full, compiled = (BenchmarkResult("steps", FULL, 2, who, (1.0,), 10) for who in ("diffusers", "diffusers, compiled"))
    ours = BenchmarkResult("steps", partial_step(1), 2, "ours", (0.5,), 1)
    other = BenchmarkResult("steps", FULL, 8, "ours", (0.5,), 40)
    results = BenchmarkResults([full, compiled, ours, other])
    assert results.rival(ours) is compiled
    assert ours.over(compiled, per_mac=True).median == 5.0
    assert results.rival(other) is None  # of another moment


def test_slow_and_fast_calls_are_timed_in_bursts_and_a_limit_leaves_the_alarm_of_others_as_it_was() -> None:
    calls = {"fast": 0, "slow": 0}

    def fast() -> None:
        calls["fast"] += 1

    def slow() -> None:
        calls["slow"] += 1
        time.sleep(0.03)

    seconds = side_by_side([fast, slow], 2)
    assert seconds.shape == (2, 2)
    assert calls["fast"] > 100 * calls["slow"] > 0
    with pytest.raises(TimeUp), limited(5), limited(0.05):
        time.sleep(3)
    with limited(0.05):
        pass
    time.sleep(0.1)  # nothing rings any more
