"""A server of two workers: both serve, one page adds them up whoever answers, a dead one is replaced, SIGTERM ends both."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from served import PATIENCE, SETTINGS, publish

from examples.launch import started
from registry.stores.address import open_store


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def workers_that_said(event: str, log: Path) -> set[int]:
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n")]
    return {said["pid"] for line in lines if (said := json.loads(line))["event"] == event}


def total(name: str, families: list[Metric]) -> float:
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_two_workers_are_one_server(tmp_path):
    publish(open_store(str(tmp_path / "registry")))
    home, log = tmp_path / "bentoml", tmp_path / "server.log"
    settings = {"FLEXI_REGISTRY": str(tmp_path / "registry"), "FLEXI_STATE": str(tmp_path / "state"), "FLEXI_WORKERS": "2"}
    with started(SETTINGS | settings | {"BENTOML_HOME": str(home)}, log, patience=PATIENCE) as served:

        def workers() -> dict[int, psutil.Process]:
            return {worker.pid: worker for worker in psutil.Process(served.supervisor.pid).children()}

        def scrape() -> list[Metric]:
            return list(text_string_to_metric_families(httpx.get(f"{served.address}/metrics", timeout=60).text))

        pids = workers().keys()
        assert len(pids) == 2
        wait_for(lambda: workers_that_said("ready", log) == pids)
        assert {httpx.get(f"{served.address}/readyz").status_code for _ in range(10)} == {200}

        def ask(seed: int) -> dict[str, Any]:
            body = {"prompt": "red heart", "tier": "draft", "seed": seed}
            reply = httpx.post(f"{served.address}/generate", json=body, timeout=PATIENCE)  # on a connection of its own
            assert reply.status_code == 200, reply.text
            return reply.json()

        answers, until = list[dict[str, Any]](), time.monotonic() + PATIENCE
        with ThreadPoolExecutor(4) as pool:
            while workers_that_said("request", log) != pids:
                assert time.monotonic() < until, "one worker gets nothing"
                answers += pool.map(ask, range(4))

        def own(pid: int, name: str) -> float:
            files = map(str, (home / "prometheus_multiproc_dir").glob(f"*_{pid}.db"))
            return total(name, list(MultiProcessCollector.merge(files)))

        asked = sum(answer["macs"] for answer in answers)
        for _ in range(6):  # whoever answers
            page = scrape()
            per_worker = [own(pid, "flexi_macs_total") for pid in pids]
            assert min(per_worker) > 0
            assert total("flexi_macs_total", page) == sum(per_worker) == asked
            assert total("flexi_request_seconds_count", page) == len(answers)
            assert total("flexi_cache_bytes", page) == sum(own(pid, "flexi_cache_bytes") for pid in pids)
            assert total("flexi_engine_up", page) == 1, "the least of both"
            assert total("flexi_watch_seconds", page) == 0.2, "the most of both"

        killed = min(pids)
        workers()[killed].kill()
        wait_for(lambda: len(now := workers().keys() - {killed}) == 2 and now <= workers_that_said("ready", log))
        wait_for(lambda: total("flexi_engine_up", scrape()) == 1)
        assert total("flexi_macs_total", scrape()) == asked, "what a dead worker did stays counted"
        assert total("flexi_cache_bytes", scrape()) == total("flexi_cache_bytes", page), "and what it had does not"

        last = workers()
        served.supervisor.send_signal(signal.SIGTERM)
        assert served.supervisor.wait(timeout=60) == 0
        assert not [worker for worker in last.values() if worker.is_running()]
        assert workers_that_said("stopping", log) == last.keys()
    assert "Traceback" not in log.read_text()
