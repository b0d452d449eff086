"""A real Prometheus for tests, with the configuration that is shipped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from places import ROOT

from deploy.grafana.panel import Panel

SHIPPED = ROOT / "deploy" / "prometheus"
JOB = "flexiffusion"


def tool(name: str) -> str:
    """Where `prometheus` or `promtool` is. Where it is missing, the test is skipped, or fails in CI (which sets `CI`)."""
    fetched = Path(sys.prefix) / "bin"  # where `make test` puts it on a machine that has none
    if binary := shutil.which(name) or shutil.which(name, path=str(fetched)):
        return binary
    reason = f"{name} is not installed (Debian: apt-get install prometheus; else https://prometheus.io/download)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs."""

    address: str

    def query(self, expr: str) -> dict[tuple[str, ...], float]:
        """An instant query: label values, by the order of the labels' names, to value. Fails on a bad expression."""
        reply = httpx.get(f"{self.address}/api/v1/query", params={"query": expr}, timeout=30)
        assert reply.status_code == 200, f"{expr}: {reply.text}"
        data = reply.json()["data"]
        assert data["resultType"] == "vector", expr
        return {
            tuple(value for _, value in sorted(sample["metric"].items())): float(sample["value"][1])
            for sample in data["result"]
        }

    def get(self, path: str) -> Any:
        """Another page of its API."""
        return httpx.get(f"{self.address}/api/v1/{path}", timeout=30).json()["data"]

    def wait_for_scrape(self, after: float, patience: float = 120) -> None:
        """Return when a scrape that began after this Unix time is in the database."""
        until = time.monotonic() + patience
        while max(self.query(f'timestamp(up{{job="{JOB}"}}) and up == 1').values(), default=0.0) <= after:
            assert time.monotonic() < until, f"no scrape: {self.get('targets')['activeTargets']}"
            time.sleep(0.2)


def shows(prometheus: Prometheus, panel: Panel, patience: float = 60) -> None:
    """Fails unless each query of a dashboard's panel has an answer.

    On a busy machine a scrape may miss its second, and Prometheus shows no gauge until the next one that does not.
    """
    until = time.monotonic() + patience
    for expr in panel.asked().values():
        while not prometheus.query(expr):
            assert time.monotonic() < until, expr
            time.sleep(0.5)


@contextmanager
def watching(target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration; only the target and the intervals are others."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(SHIPPED / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={own}"], stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(f"http://{own}", process, folder / "prometheus.log")
            yield Prometheus(f"http://{own}")
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path, patience: float = 120) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{address}/-/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise RuntimeError(f"Prometheus is not ready:\n{log.read_text()}")
