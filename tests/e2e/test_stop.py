"""SIGTERM to the supervisor: running requests finish, late ones are refused, what takes too long is given up, all is gone."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from served import PATIENCE, SETTINGS, publish

from examples.launch import RunningService, started
from registry.stores.address import open_store

LONG = {"prompt": "red heart", "tier": "reference", "num_images": 4}  # a thousand full steps
SHORT = {"prompt": "red heart", "tier": "best", "num_images": 4}


def running(served: RunningService) -> int:
    lines = httpx.get(f"{served.address}/metrics", timeout=60).text.splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("flexi_inflight_images "))


def wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def last_event(served: RunningService, body: dict[str, object]) -> dict[str, Any]:
    """Of a stream that was read to its end; of one that had not begun, the answer in its place."""
    asked = {"prompt": body["prompt"], "tier": body["tier"], "n": body["num_images"], "stream": True, "partial_images": 1}
    reply = httpx.post(f"{served.address}/v1/images/generations", json=asked, timeout=PATIENCE)
    return json.loads(reply.text.strip().rpartition("data: ")[2])  # where there are no events, the whole text


def test_sigterm_drains(tmp_path: Path):
    publish(open_store(str(tmp_path / "registry")))
    settings = {"FLEXI_REGISTRY": str(tmp_path / "registry"), "FLEXI_TEACHER_STEPS": "1000", "FLEXI_DRAIN_SECONDS": "15"}
    settings |= {"FLEXI_MAX_QUEUE_SECONDS": "3600"}
    with started(SETTINGS | settings, tmp_path / "server.log", patience=PATIENCE) as served, ThreadPoolExecutor() as pool:
        (worker,) = psutil.Process(served.supervisor.pid).children()
        client = httpx.Client(base_url=served.address, timeout=PATIENCE)
        assert client.get("/readyz").status_code == 200  # its connection stays open

        def ask(body: dict[str, object]) -> Future[httpx.Response]:
            return pool.submit(httpx.post, f"{served.address}/generate", json=body, timeout=PATIENCE)

        long, long_stream = [ask(LONG) for _ in range(2)], pool.submit(last_event, served, LONG)
        wait_for(lambda: running(served) == 12)
        short, short_stream = ask(SHORT), pool.submit(last_event, served, SHORT | {"num_images": 1})
        wait_for(lambda: running(served) == 17)
        served.supervisor.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503)

        late = [client.post("/generate", json=SHORT), ask(SHORT).result()]  # on the old connection, and on a new one
        for refusal in late:
            assert refusal.status_code == 503
            assert refusal.json()["error"]["code"] == "stopping"
            assert int(refusal.headers["retry-after"]) > 0
            assert refusal.headers["connection"] == "close"
        assert httpx.get(f"{served.address}/livez").status_code == 200
        assert short.result().status_code == 200
        assert short_stream.result()["type"] == "image_generation.completed"
        assert long_stream.result()["error"]["code"] == "stopping"
        for request in long:
            assert request.result().status_code == 503
            assert request.result().json()["error"]["code"] == "stopping"

        assert served.supervisor.wait(timeout=60) == 0
        assert not worker.is_running()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.address}/livez")
    text = (tmp_path / "server.log").read_text()
    assert '"event": "stopping", "running": 5' in text
    assert "Traceback" not in text
