"""An engine that dies: nobody waits for ever, readiness goes, and another worker takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from served import PATIENCE, SETTINGS

from examples.launch import RunningService, started

BODY = {"prompt": "red heart", "tier": "reference", "seed": 1}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("faults") / "fault"
    file.write_text("")
    return file


@pytest.fixture(scope="module")
def served(faults: Path) -> Iterator[RunningService]:
    settings = SETTINGS | {"FLEXI_REGISTRY": str(faults.parent / "registry"), "LOST_ENGINE": str(faults)}
    service = "tests.e2e.lost_engine:Flexiffusion"
    with started(settings, faults.parent / "server.log", patience=PATIENCE, service=service) as served:
        yield served


def workers(served: RunningService) -> set[psutil.Process]:
    return set(psutil.Process(served.supervisor.pid).children())


def is_ready(served: RunningService) -> bool:
    try:
        return httpx.get(f"{served.address}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("fault", ["device", "thread"])
def test_a_lost_engine_takes_its_worker_down_and_another_one_serves(served, faults, fault):
    (old,) = workers(served)
    assert httpx.post(f"{served.address}/generate", json=BODY, timeout=PATIENCE).status_code == 200
    faults.write_text(fault)
    refusals = []
    while is_ready(served):  # a lost device is believed after some waves in a row
        refusals.append(httpx.post(f"{served.address}/generate", json=BODY, timeout=PATIENCE))
    assert refusals
    for refusal in refusals:
        assert refusal.status_code in (500, 503)
        assert refusal.json()["error"]["code"] in ("generation_failed", "not_ready", "stopping")
        assert "traceback" not in refusal.text.lower()
    until = time.monotonic() + PATIENCE
    while not is_ready(served):
        assert time.monotonic() < until, "no other worker came"
        time.sleep(0.3)
    (new,) = workers(served)
    assert new.pid != old.pid
    assert not old.is_running()
    answer = httpx.post(f"{served.address}/generate", json=BODY, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    lines = httpx.get(f"{served.address}/metrics", timeout=60).text.splitlines()
    assert "flexi_inflight_images 0.0" in lines, "images of the dead worker are still counted"
    assert "flexi_engine_up 1.0" in lines
