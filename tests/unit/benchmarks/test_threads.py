"""Threads are measured in processes of their own, each with OpenMP's environment as its cell says, beside what else is busy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import model_folders
import pytest
from places import ROOT

from benchmarks import threads


def test_a_cell_is_milliseconds_for_each_number_of_images(tmp_path: Path) -> None:
    model_folders.ddpm(tmp_path / "model")
    one, two = threads.measured(tmp_path / "model", [1, 2], threads=1, waiting="", seconds=0.1)
    assert one > 0
    assert two > 0


@pytest.mark.parametrize(("waiting", "policy"), [(threads.SPINNING, None), (threads.SLEEPING, "passive")])
def test_openmp_is_told_what_the_cell_says_whatever_the_environment_says(
    waiting: str, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    told: dict[str, str] = {}

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        told.update(env)
        return subprocess.CompletedProcess(command, 0, json.dumps([1.0]))

    monkeypatch.setattr(subprocess, "run", run)
    assert threads.measured(Path("model"), [1], threads=3, waiting=waiting, seconds=1) == [1.0]
    assert (told["OMP_NUM_THREADS"], told.get("OMP_WAIT_POLICY"), told.get("GOMP_SPINCOUNT")) == ("3", policy, None)
    assert told["PATH"] == os.environ["PATH"]


def test_what_is_busy_ends_with_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[subprocess.Popen[bytes]] = []

    def popen(command: list[str], popen: type[subprocess.Popen[bytes]] = subprocess.Popen) -> subprocess.Popen[bytes]:
        began.append(popen(command))
        return began[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with threads.occupied(2):
        assert [other.poll() for other in began] == [None, None]
    assert len(began) == 2
    assert all(other.returncode is not None for other in began)


def test_the_engine_leaves_openmp_as_it_is() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import engine, os; raise SystemExit('OMP_WAIT_POLICY' in os.environ)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=60)
