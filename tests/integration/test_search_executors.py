"""Crews on real Dask clusters: what goes wrong with them is said, and where a worker stands changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from places import ROOT

from registry.errors import FlexiError, InvalidInput
from registry.schedule import Schedule, Segment
from search_jobs import dask_executor as module
from search_jobs.build import CODE
from search_jobs.config import JobConfig
from search_jobs.dask_executor import DaskExecutor
from search_jobs.executor import EvaluationTask, Evaluator, LocalExecutor
from search_jobs.job import Job

SMALL = {
    "guidance": 3.0,
    "teacher_steps": 4,
    "screen": 2,
    "images": 2,
    "scales": (1.0,),
    "scaled": 2,
    "tiers": {"fast": 0.8},
    "budgets": (),
}
FILES = {"model": "models/emoji64", "features": "models/emoji64/clip", "prompts": "models/emoji64/prompts.txt"}
CONFIG = JobConfig.parse({**FILES, **SMALL})


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


@pytest.fixture(scope="module")
def task() -> EvaluationTask:
    """A schedule on the first rung."""
    model = Evaluator.open(CONFIG, Path("nowhere")).model
    segments = (Segment(partial=(1,), branch=2),) * 2
    return EvaluationTask("screen", Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments), fitting=True)


class Elsewhere:
    """A scheduler that somebody else started, as docs/search.md says: it knows nothing of this project."""

    def __init__(self, place: Path) -> None:
        self.place, self.processes = place, list[subprocess.Popen[str]]()
        line = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", until="Scheduler at", code=place)
        (self.address,) = re.findall(r"tcp://\S+", line)

    def add_worker(self, code: Path = ROOT) -> None:
        """In a directory that is not the repository's, with what lies in `code`."""
        self._start("worker", self.address, "--nthreads", "1", "--no-nanny", until="Registered to", code=code)

    def _start(self, kind: str, *arguments: str, until: str, code: Path) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"],
            cwd=self.place,
            env={**os.environ, "PYTHONPATH": str(code)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stderr is not None
        line = next(line for line in process.stderr if until in line)
        Thread(target=process.stderr.read, daemon=True).start()  # whoever is not read may stop at a full pipe
        return line

    def kill(self) -> None:
        """As often as one likes."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    started = Elsewhere(tmp_path)
    yield started
    started.kill()


@pytest.mark.parametrize("address", ["here", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "http://127.0.0.1:8786"])
def test_what_is_no_address_is_said_before_anything_is_computed(address: str, tmp_path: Path) -> None:
    job = Job(CONFIG, tmp_path / "run", Silent(), scheduler=address)
    with pytest.raises(InvalidInput, match=r"scheduler: expected tcp://host:port, got") as caught:
        job.run()
    assert caught.value.param == "scheduler"
    assert not list((tmp_path / "run").glob("teacher-*.pt"))


def test_a_scheduler_that_is_not_there_or_has_no_worker_is_not_waited_for_without_end(elsewhere: Elsewhere) -> None:
    with pytest.raises(InvalidInput, match=f"scheduler: {elsewhere.address} has no worker"):
        DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address, patience=0.5)
    elsewhere.kill()
    with pytest.raises(InvalidInput, match=f"scheduler: nobody answers at {elsewhere.address}"):
        DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address, patience=0.5)


def test_a_worker_of_another_directory_measures_the_same_from_relative_paths(
    elsewhere: Elsewhere, task: EvaluationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    elsewhere.add_worker()
    folder = elsewhere.place / "run"
    with DaskExecutor(CONFIG, folder, 1, elsewhere.address) as executor:
        ((_, measured),) = executor.evaluate([task], lambda images: None)
    ((_, alone),) = LocalExecutor(Evaluator.open(CONFIG, folder)).evaluate([task], lambda images: None)
    assert measured == alone


def test_a_scheduler_that_is_killed_is_missed(
    elsewhere: Elsewhere, task: EvaluationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = elsewhere.place / "begun"

    def long(config: str, folder: str, tasks: Sequence[EvaluationTask]) -> None:
        begun.touch()
        time.sleep(600)

    def kill_it() -> None:
        while not begun.is_file():
            time.sleep(0.05)
        elsewhere.kill()

    monkeypatch.setattr(module, "_evaluate", long)
    elsewhere.add_worker()
    with DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address, patience=8) as executor:
        Thread(target=kill_it).start()
        with pytest.raises(FlexiError, match=r"scheduler: it is gone \(.*what was measured is kept"):
            list(executor.evaluate([task], lambda images: None))
        with pytest.raises(FlexiError, match=r"scheduler: it is gone \("):
            list(executor.evaluate([task], lambda images: None))


def test_a_scheduler_that_is_gone_at_the_end_is_no_fault(elsewhere: Elsewhere) -> None:
    elsewhere.add_worker()
    with DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address):
        elsewhere.kill()


def test_a_worker_without_this_code_or_with_other_code_is_told_apart(elsewhere: Elsewhere, task: EvaluationTask) -> None:
    elsewhere.add_worker(code=elsewhere.place)
    with (
        DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address) as executor,
        pytest.raises(FlexiError, match=r"workers: one lacks this code .*search_jobs.*start it from the repository's root"),
    ):
        list(executor.evaluate([task], lambda images: None))
    elsewhere.processes.pop().kill()

    other = elsewhere.place / "other"
    for package in CODE:
        shutil.copytree(ROOT / package, other / package)
    with (other / "engine" / "noise.py").open("a") as file:
        file.write("# changed\n")
    elsewhere.add_worker(code=other)
    with (
        DaskExecutor(CONFIG, elsewhere.place, 1, elsewhere.address) as executor,
        pytest.raises(
            FlexiError, match=r"workers: one refuses .*it runs code \w+ and not code \w+: start it from the same checkout"
        ),
    ):
        list(executor.evaluate([task], lambda images: None))


def test_what_is_missing_where_a_worker_stands_is_named(elsewhere: Elsewhere, task: EvaluationTask) -> None:
    elsewhere.add_worker()
    config = CONFIG.model_copy(update={"model": str(elsewhere.place / "nowhere")})
    with (
        DaskExecutor(config, elsewhere.place, 1, elsewhere.address) as executor,
        pytest.raises(FlexiError, match=r"workers: one refuses its schedules: .*nowhere.*what was measured is kept"),
    ):
        list(executor.evaluate([task], lambda images: None))


class _Page(BaseHTTPRequestHandler):
    """Something that speaks HTTP."""

    def log_message(self, *_: object) -> None: ...


def test_what_is_no_scheduler_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as page, socket.create_server(("127.0.0.1", 0)) as silent:
        Thread(target=page.serve_forever, daemon=True).start()
        for port in (page.server_port, silent.getsockname()[1]):
            with pytest.raises(InvalidInput, match=f"scheduler: .*answers at tcp://127.0.0.1:{port}") as refused:
                DaskExecutor(CONFIG, tmp_path, 1, f"tcp://127.0.0.1:{port}", patience=1)
            assert "\n" not in refused.value.message
        page.shutdown()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [TypeError("unexpected 'versions'"), KeyError("status"), RuntimeError("mismatch"), AssertionError(), AttributeError("x")],
)
def test_a_scheduler_of_another_version_is_one_line_whatever_it_makes_of_us(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("distributed.Client", fails)
    with pytest.raises(InvalidInput, match=r"no scheduler of this version answers .*same versions of Python and distributed"):
        DaskExecutor(CONFIG, tmp_path, 1, "tcp://127.0.0.1:1", patience=1)


def test_a_local_worker_has_all_memory_and_a_group_as_many_tries_after_a_death_as_after_an_error(
    tmp_path: Path, task: EvaluationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = tmp_path / "tries"

    def dies(config: str, folder: str, tasks: Sequence[EvaluationTask]) -> None:
        with tries.open("a") as file:
            file.write("died\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(config: str, folder: str, tasks: Sequence[EvaluationTask]) -> None:
        with tries.open("a") as file:
            file.write("raised\n")
        raise RuntimeError("out of luck")

    monkeypatch.setattr(module, "RETRIES", 1)
    with DaskExecutor(CONFIG, tmp_path, 1) as executor:
        (worker,) = executor.client.scheduler_info()["workers"].values()
        assert not worker["memory_limit"], "Dask would end a worker that is larger than it guessed"
        monkeypatch.setattr(module, "_evaluate", raises)
        with pytest.raises(FlexiError, match=r"workers: one failed .*RuntimeError: out of luck.*what was measured is kept"):
            list(executor.evaluate([task], lambda images: None))
        monkeypatch.setattr(module, "_evaluate", dies)
        with pytest.raises(FlexiError, match=r"workers: 2 died one after another"):
            list(executor.evaluate([task], lambda images: None))
    assert tries.read_text().split() == ["raised"] * 2 + ["died"] * 2
