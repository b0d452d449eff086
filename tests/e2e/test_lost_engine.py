"""An engine that dies: who waits is told to try again, another worker takes over, and at last the server ends."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def refusals(served: RunningService, faults: Path, fault: str) -> list[httpx.Response]:
    """The answers to three requests that are in flight when the device is lost.

    One client sends them, for a new one takes a while to make: the process may have ended before the third comes.
    """
    with httpx.Client(base_url=served.address, timeout=PATIENCE) as client, ThreadPoolExecutor(3) as threads:
        client.get("/livez")
        faults.write_text(fault)
        return list(threads.map(lambda seed: client.post("/generate", json={**BODY, "seed": seed}), range(3)))


def check(answers: list[httpx.Response]) -> None:
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] in ("not_ready", "stopping")
        assert int(answer.headers["Retry-After"]) > 0
        assert "traceback" not in answer.text.lower()


def silent_seconds(served: RunningService) -> float:
    page = httpx.get(f"{served.address}/metrics", timeout=60).text
    (seconds,) = re.findall(r"^flexi_engine_silent_seconds (.+)$", page, re.MULTILINE)
    return float(seconds)


def test_a_device_that_does_not_answer_is_on_the_page_until_it_does(served, faults):
    assert silent_seconds(served) == 0
    faults.write_text("silence")
    until = time.monotonic() + PATIENCE
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(httpx.post, f"{served.address}/generate", json=BODY, timeout=PATIENCE)
        while silent_seconds(served) < 2:
            assert time.monotonic() < until, "its thread hangs, and nobody is told"
            assert not answer.done()
            time.sleep(0.1)
        assert answer.result().status_code == 200
    while silent_seconds(served):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("fault", ["wave", "thread"])
def test_a_lost_engine_takes_its_worker_down_and_another_one_serves(served, faults, fault):
    (old,) = workers(served)
    assert httpx.post(f"{served.address}/generate", json=BODY, timeout=PATIENCE).status_code == 200
    check(refusals(served, faults, fault))
    until = time.monotonic() + PATIENCE
    while old.is_running() or not is_ready(served):
        assert time.monotonic() < until, "no other worker came"
        time.sleep(0.3)
    (new,) = workers(served)
    assert new.pid != old.pid
    answer = httpx.post(f"{served.address}/generate", json=BODY, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    lines = httpx.get(f"{served.address}/metrics", timeout=60).text.splitlines()
    assert "flexi_inflight_images 0.0" in lines, "images of the dead worker are still counted"
    assert "flexi_engine_up 1.0" in lines


def test_the_third_engine_that_is_lost_ends_the_server_with_one_line_and_exit_code_1(served, faults):
    check(refusals(served, faults, "decode"))
    assert served.supervisor.wait(PATIENCE) == 1
    last = (faults.parent / "server.log").read_text().splitlines()[-1]
    assert last == "error: the device is lost: CUDA error: of a decode and more about it"
