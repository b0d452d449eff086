"""schemathesis reads /docs.json and asks what it allows and what it forbids: no answer may be a fault, or not declared.

`make fuzz` does the same with more requests, in all of its phases and in one thread: hypothesis parses source text in the
coverage phase, and two threads of CPython 3.11 that parse at once break each other (AST constructor recursion depth mismatch).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from api_keys import keys
from places import ROOT
from served import PATIENCE, SETTINGS, publish

from examples.launch import serving
from registry.stores.address import open_store

CONFIG = Path(__file__).with_name("schemathesis.toml")
ARGUMENTS = os.environ.get("FUZZ", "--workers 4 --phases fuzzing --max-examples 50 --seed 1")
LEAST = int(os.environ.get("FUZZ_LEAST", "200"))  # requests
# Of Python 3.11's ast.parse, which Hypothesis calls, where another thread changes the limit of recursion: no answer of ours.
CPYTHON_FAULT = "SystemError: AST constructor recursion depth mismatch"
FEW = ("--workers", "4", "--phases", "fuzzing", "--seed", "1", "--max-examples")  # where nearly all are refused
IMAGES = ("--include-path-regex", "^/generate$|^/v1/images/")
ACTIONS = "^/v1/operator/.+/(promote|rollback|ramp|stop|kill)$"
DEAREST = {"prompt": "red heart", "tier": "reference", "num_images": 4}
SERVED = 'flexi_http_responses_total{status="200"}'  # without the probes


def test_every_answer_is_declared(server, tmp_path):
    before = server.log.read_text().count("Traceback")
    try:
        assert fuzz(f"{server.address}/docs.json", tmp_path, *ARGUMENTS.split()) >= LEAST
    finally:
        cancel_jobs(server.address)
    assert server.log.read_text().count("Traceback") == before


def cancel_jobs(address: str) -> None:
    """All that were made up: they would run for minutes beside the tests that follow."""
    after, more = "", True
    while more:
        page = httpx.get(f"{address}/v1/jobs", params={"limit": 100, "after": after}, timeout=120).raise_for_status().json()
        for job in page["data"]:
            if job["state"] in ("queued", "running"):
                httpx.delete(f"{address}/v1/jobs/{job['id']}", timeout=120).raise_for_status()
        after, more = page["data"][-1]["id"] if page["data"] else "", page["has_more"]


@dataclass(frozen=True)
class Guarded:
    """A server that asks for keys, and its document, which does too."""

    address: str
    file: Path
    boss: str
    document: Path

    def count(self, series: str) -> float:
        """What it has counted so far."""
        page = httpx.get(f"{self.address}/metrics").text.splitlines()
        return sum(float(line.removeprefix(series)) for line in page if line.startswith(f"{series} "))

    def ask(self, token: str) -> httpx.Response:
        return httpx.post(f"{self.address}/generate", json=DEAREST, headers={"X-API-Key": token}, timeout=120)

    def new(self, name: str, *limits: object) -> str:
        """A key, once it is in force."""
        token = keys("new", name, "--file", self.file, *limits)
        until = time.monotonic() + 60
        while httpx.get(f"{self.address}/v1/tiers", headers={"X-API-Key": token}).status_code == 401:
            assert time.monotonic() < until, "the key does not come into force"
            time.sleep(0.2)
        return token

    def fuzz(self, folder: Path, *arguments: str, examples: int = 20) -> int:
        """examples: of each operation, at most."""
        return fuzz(self.document, folder, "--url", self.address, *FEW, str(examples), *arguments)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    registry, file, document = folder / "registry", folder / "keys.json", folder / "docs.json"
    publish(open_store(str(registry)))
    boss = keys("new", "boss", "--file", file)
    settings = {"FLEXI_REGISTRY": str(registry), "FLEXI_STATE": str(folder / "state"), "FLEXI_API_KEYS": str(file)}
    with serving(SETTINGS | settings, folder / "server.log", patience=PATIENCE) as address:
        document.write_text(httpx.get(f"{address}/docs.json", headers={"X-API-Key": boss}).raise_for_status().text)
        yield Guarded(address, file, boss, document)


def test_who_has_no_key_is_refused_as_declared(guarded, tmp_path):
    """Without a key, and with what schemathesis takes for one. Only the probes answer 200."""
    served = guarded.count(SERVED)
    assert guarded.fuzz(tmp_path, examples=5) >= 100
    assert guarded.count('flexi_rejected_total{reason="unauthorized"}') >= 50
    assert guarded.count(SERVED) == served


def test_who_has_no_quota_left_is_refused_as_declared(guarded, tmp_path):
    """The dearest request takes all of it, a minute's worth."""
    token = guarded.new("poor", "--macs-per-minute", guarded.ask(guarded.boss).json()["macs"])
    assert guarded.ask(token).status_code == 200
    guarded.fuzz(tmp_path, *IMAGES, *with_key(token))
    assert guarded.count('flexi_rejected_total{reason="quota_exceeded"}') >= 5


def test_whose_queue_is_full_is_refused_as_declared(guarded, tmp_path):
    """The key has room for one request: the two routes that make images are asked at the same time."""
    guarded.fuzz(tmp_path, *IMAGES, *with_key(guarded.new("hurried", "--queue-seconds", 0.001)))
    assert guarded.count('flexi_rejected_total{reason="overloaded"}') >= 1


def test_what_operators_do_is_answered_as_declared(guarded, tmp_path):
    """With a key that may act: tiers and experiments are moved, or it is said why not. What they ask is fuzzed above."""
    token = guarded.new("olga", "--role", "operator")
    assert guarded.fuzz(tmp_path, "--include-path-regex", ACTIONS, *with_key(token)) >= 50
    page = httpx.get(f"{guarded.address}/metrics").text
    for action in ("promote", "rollback", "ramp", "stop", "kill"):
        assert f'flexi_operator_actions_total{{action="{action}"' in page, "nobody got so far as to act"


def with_key(token: str) -> tuple[str, ...]:
    return "--header", f"X-API-Key: {token}", "--generation-with-security-parameters", "false"


def fuzz(document: object, folder: Path, *arguments: str) -> int:
    """How many requests were made."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", str(document), *arguments]
    command += ["--no-color", "--generation-database", "none", "--continue-on-failure"]
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    for _ in range(3):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | hooks)
        if CPYTHON_FAULT not in done.stdout:
            break
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d[\d,]*) generated", done.stdout)[1].replace(",", ""))
