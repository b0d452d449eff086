"""The load tests run, for seconds: what they measure is not judged here, but nothing may fail and their books must balance."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from places import ROOT

from loadtests import soak
from loadtests.run import measure
from loadtests.soak_record import SoakRecord
from registry.catalog import Catalog


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("profile", ["steady", "mixed", "sizes", "loras", "abandonment"])
def test_the_books_of_a_profile_balance(server, profile, tmp_path):
    for seconds in (3, 9, 27):  # on a busy machine, or where all that was begun is hung up, nothing may be answered in so few
        result = measure(profile, server.address, users=4, seconds=seconds, out=tmp_path)
        if any(one["answered"] for one in result["names"].values()):
            break
    assert_served(result)
    assert 0 <= result["exported_macs"] - result["billed_macs"] <= result["abandoned_macs"]


def test_a_profile_with_an_experiment(tmp_path):
    """As `make load` runs it. Two users in five seconds are too few for its limits, but meet both arms."""
    loadtest("run", "--profile", "arms", "--users", 2, "--seconds", 5, "--out", tmp_path)
    result = json.loads((tmp_path / "arms" / "result.json").read_text())
    assert_served(result)
    assert result["exported_macs"] == result["billed_macs"]
    assert set(result["names"]) == set(result["units"]) == {"control", "treatment"}


def test_a_burst_can_be_read():
    """It takes its time, which no argument shortens."""
    assert "BurstUser" in python("locust", "--list", "--locustfile", "loadtests/profiles/burst.py").stdout


def test_all_peers_answer(tmp_path):
    loadtest(
        "peers", "--simulated", "--mix", "fewer", "--clients", 2, "--rounds", 1, "--warm-up", 0, "--seconds", 2,
        "--out", tmp_path,
    )  # fmt: skip
    (result,) = json.loads((tmp_path / "peers.json").read_text())
    assert [row["server"] for row in result["rows"]] == ["naive", "batcher", "batcher, together", "ours"]
    assert all(row["requests"] > 0 and row["errors"] == 0 for row in result["rows"])
    assert result["goals"][0] == {
        "what": "errors of all servers",
        "clients": 2,
        "found": 0,
        "least": None,
        "most": 0,
        "kept": True,
    }


def test_a_soak_sees_everything(server, monkeypatch):
    """Its crowd, a tier that moves, and a process that is stopped and goes on."""
    monkeypatch.setattr(soak, "MOVE_SECONDS", 1.0)
    digests, record = [server.schedules[tier].digest for tier in ("draft", "fast", "balanced")], SoakRecord()
    catalog, ourselves = Catalog(server.catalog.store, "emoji64", author="soak"), [psutil.Process()]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        store = psutil.Process(child.pid)
        outages = soak.suffer(store, record, calm=1.0, away=1.0)
        besides = (soak.move(catalog, "soaked", digests, record), outages, soak.watch(ourselves, record))
        asyncio.run(soak.soak(server.address, digests, record, time.monotonic() + 8, *besides))
        assert store.status() != psutil.STATUS_STOPPED
        child.kill()
    print(record.summary())  # noqa: T201
    assert [line for line in record.verdict() if not line.startswith("memory")] == [], "a process grows in its first seconds"


def assert_served(result):
    assert result["names"]
    assert all(one["failed"] == 0 for one in result["names"].values())
    assert sum(one["answered"] for one in result["names"].values()) > 0


def loadtest(name, *arguments):
    """1 is a goal or a limit that was missed, and not judged here; a fault has a traceback."""
    done = python(f"loadtests.{name}", *arguments)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def python(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
