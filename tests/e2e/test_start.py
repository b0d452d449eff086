"""A start that cannot succeed ends and says why; one that may yet succeed waits and says why."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import httpx
import pytest
from served import MODEL, PATIENCE, SETTINGS, publish

from examples.launch import RunningService, free_port, spawned
from registry.stores.address import open_store

FAILING = "tests.e2e.failing_start:Flexiffusion"


def command(host: str, port: int, service: str = "server.service:Flexiffusion") -> list[str]:
    return ["-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]


def start(host: str, port: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *command(host, port)]
    return subprocess.run(
        arguments, cwd=MODEL.parents[1], env=os.environ | settings, capture_output=True, text=True, timeout=300
    )


def said_until_the_end(served: RunningService) -> list[tuple[int, str]]:
    """What /readyz answered, (status, message), until the process ended: each answer once."""
    answers, until = list[tuple[int, str]](), time.monotonic() + PATIENCE
    while served.supervisor.poll() is None:
        assert time.monotonic() < until, "it does not end"
        try:
            answer = httpx.get(f"{served.address}/readyz", timeout=5)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        said = (answer.status_code, answer.json()["error"]["message"])
        if said not in answers:
            answers.append(said)
        time.sleep(0.2)
    return answers


@pytest.mark.parametrize(
    ("host", "settings", "said"),
    [
        (
            "127.0.0.1",
            {"FLEXI_TYPO": "1", "FLEXI_MAX_IMAGES": "0"},
            "FLEXI_TYPO: there is no such setting; FLEXI_MAX_IMAGES: ",
        ),
        ("127.0.0.1", {"FLEXI_API_KEYS": "/nowhere/keys.json"}, "FLEXI_API_KEYS: cannot read /nowhere/keys.json: "),
        ("0.0.0.0", {}, "FLEXI_API_KEYS: without API keys the server listens on this machine only, not on 0.0.0.0: "),
    ],
    ids=["settings", "keys", "address"],
)
def test_one_line_stops_the_start(host, settings, said):
    done = start(host, **settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
    assert done.stdout == ""


def test_a_model_that_does_not_fit_together_stops_the_start_before_anything_listens(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"down_block_types": ["DownBlock2D", "FancyBlock2D"]}))
    done = start("127.0.0.1", FLEXI_MODEL=str(tmp_path / "model"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unet: down_block_types FancyBlock2D is not supported")
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("127.0.0.1", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: --port: cannot listen on 127.0.0.1, port {port}: Address already in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("service", "settings", "reason", "tracebacks"),
    [
        (
            "server.service:Flexiffusion",
            {"FLEXI_DEVICE": "cuda:99", "FLEXI_WORKERS": "2"},
            "FLEXI_DEVICE: cuda:99 was asked for, but torch sees no such CUDA device",
            0,
        ),
        (FAILING, {}, "RuntimeError: nobody expected this, in two lines", 1),
    ],
    ids=["of two workers", "for a reason that nobody knows"],
)
def test_a_worker_that_cannot_start_ends_the_server_and_says_why(tmp_path, service, settings, reason, tracebacks):
    port, log = free_port(0), tmp_path / "server.log"
    own = {"FLEXI_REGISTRY": str(tmp_path / "registry"), "FLEXI_STATE": str(tmp_path), "BENTOML_HOME": str(tmp_path / "home")}
    with spawned(command("127.0.0.1", port, service), log, SETTINGS | own | settings) as supervisor:
        answers = said_until_the_end(RunningService(f"http://127.0.0.1:{port}", supervisor))
        assert supervisor.returncode == 1
    assert {status for status, _ in answers} == {503}
    assert f"the server cannot start: {reason}" in {message for _, message in answers}
    lines = log.read_text().splitlines()
    assert lines[-1] == f"error: {reason}"
    assert [line for line in lines if "error:" in line.lower() and not line.startswith("{")] == lines[-1:]
    traced = [line for line in lines if "Traceback" in line]
    assert len(traced) == tracebacks
    for line in traced:
        assert json.loads(line)["event"] == "the server cannot start"


def test_a_registry_that_is_away_or_has_no_tiers_is_waited_for_and_said(tmp_path):
    registry, log, port = tmp_path / "registry", tmp_path / "server.log", free_port(0)
    registry.write_text("a file")
    own = {"FLEXI_REGISTRY": str(registry), "FLEXI_STATE": str(tmp_path / "state"), "BENTOML_HOME": str(tmp_path / "home")}
    with spawned(command("127.0.0.1", port), log, SETTINGS | own | {"FLEXI_REQUIRE_TIERS": "true"}) as supervisor:

        def waits_for(text: str) -> httpx.Response:
            until = time.monotonic() + PATIENCE
            while True:
                assert supervisor.poll() is None
                assert time.monotonic() < until, text
                try:
                    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                except httpx.TransportError:
                    time.sleep(0.2)
                    continue
                if text in answer.text:
                    return answer
                time.sleep(0.1)

        assert waits_for("the registry could not be read: ").status_code == 503
        registry.unlink()
        empty = waits_for("FLEXI_REQUIRE_TIERS wants a tier of the registry: the registry holds no tiers of emoji64")
        assert empty.status_code == 503
        refusal = httpx.post(f"http://127.0.0.1:{port}/generate", json={"prompt": "red heart"}, timeout=60)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "not_ready")
        assert "FLEXI_REQUIRE_TIERS" in refusal.json()["error"]["message"]
        publish(open_store(str(registry)))
        ready = waits_for('"best","reference"],"warnings":[]').json()  # the tiers are promoted one after the other
        tiers = httpx.get(f"http://127.0.0.1:{port}/v1/tiers", timeout=60).json()
    assert ready == {
        "ready": True,
        "model": "emoji64",
        "default": "balanced",
        "tiers": ["draft", "fast", "balanced", "best", "reference"],
        "warnings": [],
    }
    assert (tiers["not_served"], tiers["warnings"]) == ([], [])
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert len([event for event in events if event.startswith("the registry holds no tiers of emoji64")]) == 1
    assert any(event.startswith("no longer: ") and "tier" in event for event in events), "whichever were missing last"
