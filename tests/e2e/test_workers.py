"""A server of two workers: both serve, DELETE finds a request in either, one page adds them up, a dead one's job is done by the
other, which nobody notices while the device of the dead one is away, it is replaced, and SIGTERM ends both."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from served import PATIENCE, SETTINGS, made, publish

from examples.launch import started
from registry.catalog import Catalog
from registry.schedule import Segment, Solver, teacher
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


def who_begins(job: str, log: Path) -> int:
    """The worker that begins a job, as it says."""
    wait_for(lambda: any(job in line and "job begun" in line for line in log.read_text().splitlines()))
    (pid,) = {json.loads(line)["pid"] for line in log.read_text().splitlines() if job in line and "job begun" in line}
    return int(pid)


def found(address: str, job: str) -> dict[str, Any]:
    """A job, whichever worker is asked."""
    seen: dict[str, Any] = httpx.get(f"{address}/v1/jobs/{job}", timeout=PATIENCE).json()
    return seen


def client_of(sockets: str, worker: int) -> httpx.Client:
    """Of one of the workers, by its own socket, as a proxy asks it."""
    transport = httpx.HTTPTransport(uds=f"{sockets}/{worker}.sock")
    return httpx.Client(base_url="http://localhost", transport=transport, timeout=PATIENCE)


def stopped_by_the_other(asked: httpx.Client, other: httpx.Client) -> None:
    """A request to one worker that would take minutes, and a DELETE to the other one."""

    def in_flight() -> float:
        return total("flexi_inflight_images", list(text_string_to_metric_families(other.get("/metrics").text)))

    body, name = {"prompt": "red heart", "tier": "long", "num_images": 4}, {"X-Request-Id": "long"}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked.post, "/generate", json=body, headers=name)
        wait_for(lambda: in_flight() > 0)
        reply = other.delete("/v1/requests/long")
        assert (reply.status_code, reply.json()) == (200, {"cancelled": 1})
        assert answer.result().json()["error"]["code"] == "cancelled"
        wait_for(lambda: in_flight() == 0)
    assert other.delete("/v1/requests/long").status_code == 404


@pytest.fixture
def sockets() -> Iterator[str]:
    """A folder with a short name: pytest's may be too long for sockets."""
    with TemporaryDirectory(prefix="flexi-") as folder:
        yield folder


def test_two_workers_are_one_server(tmp_path, sockets):
    publish(store := open_store(str(tmp_path / "registry")))
    long = teacher(made("ddim", Segment()).model, Solver(name="ddim", teacher_steps=1000, spacing="trailing"))
    catalog = Catalog(store, "emoji64", author="test")
    catalog.publish(long)
    catalog.promote("long", long.digest)
    (fault := tmp_path / "fault").write_text("")
    home, log = tmp_path / "bentoml", tmp_path / "server.log"
    settings = {"FLEXI_REGISTRY": str(tmp_path / "registry"), "FLEXI_STATE": str(tmp_path / "state"), "FLEXI_WORKERS": "2"}
    settings |= {
        "FLEXI_JOB_LEASE_SECONDS": "2",
        "LOST_ENGINE": str(fault),
        "FLEXI_WORKER_SOCKETS": sockets,
        "BENTOML_HOME": str(home),
    }
    service = "tests.e2e.lost_engine:Flexiffusion"
    with started(SETTINGS | settings, log, patience=PATIENCE, service=service) as served:

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
            assert total("flexi_workers_up", page) == total("flexi_workers", page) == 2
            assert total("flexi_watch_seconds", page) == 0.2, "the most of both"

        with client_of(sockets, 1) as first, client_of(sockets, 2) as second:
            stopped_by_the_other(first, second)
            stopped_by_the_other(second, first)
        asked = total("flexi_macs_total", page := scrape())

        body = {"prompt": "red heart", "tier": "reference", "num_images": 4}
        job = httpx.post(f"{served.address}/v1/jobs", json={"body": body}, timeout=PATIENCE).json()["id"]
        killed = who_begins(job, log)
        fault.write_text("away")
        (victim := workers()[killed]).kill()
        wait_for(lambda: not victim.is_running())
        left = scrape()
        assert [total(f"flexi_{name}", left) for name in ("workers", "workers_up", "engine_up")] == [2, 1, 1]

        def back() -> bool:
            """Whether both serve again; until then one does, and is the server."""
            with ThreadPoolExecutor(4) as pool:
                ready = pool.map(lambda _: httpx.get(f"{served.address}/readyz", timeout=60).status_code, range(4))
                assert set(ready) == {200}
            now = workers().keys() - {killed}
            return len(now) == 2 and now <= workers_that_said("ready", log) and total("flexi_workers_up", scrape()) == 2

        wait_for(back)
        assert workers_that_said("a worker cannot start, and the others go on: the device is lost: it is away", log)
        assert total("flexi_engine_up", scrape()) == 1
        for worker in (1, 2):
            with client_of(sockets, worker) as client:
                assert client.get("/readyz").status_code == 200, "the successor listens where its predecessor did"
        wait_for(lambda: found(served.address, job)["state"] not in ("queued", "running"))
        done = found(served.address, job)
        assert (done["state"], len(done["result"]["images"])) == ("succeeded", 4), done
        assert httpx.get(done["result"]["images"][3]).content[1:4] == b"PNG"
        counted = total("flexi_macs_total", scrape())
        assert counted == sum(own(pid, "flexi_macs_total") for pid in pids | workers().keys()), "what a dead worker did stays"
        assert asked + done["result"]["macs"] <= counted < asked + 2 * done["result"]["macs"], "it had begun the job, no more"
        assert total("flexi_cache_bytes", scrape()) == total("flexi_cache_bytes", page), "and what it had does not"

        last = workers()
        served.supervisor.send_signal(signal.SIGTERM)
        assert served.supervisor.wait(timeout=60) == 0
        assert not [worker for worker in last.values() if worker.is_running()]
        assert workers_that_said("stopping", log) == last.keys()
    assert "Traceback" not in log.read_text()
