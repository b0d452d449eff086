"""The metrics as Prometheus reads them: of all worker processes, without the dead and without the past."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from typing_extensions import override

from server.telemetry.model_metrics import MODEL

PAGE_TRIES, PAGE_WAIT = 5, 0.02  # seconds
T = TypeVar("T")


def page() -> bytes:
    """The text for Prometheus: of all workers where there are several processes, and of this one else."""
    registry = CollectorRegistry()
    registry.register(_present())
    return _patiently(lambda: generate_latest(registry))


def present() -> list[Metric]:
    """What `page` writes, not yet as text."""
    return _patiently(lambda: list(_present().collect()))


def forget_this_process() -> None:
    """Remove what it has counted. For one that ends and never served: its successors may be many, and every page reads all."""
    for file in folder.glob(f"*_{os.getpid()}.db") if (folder := _folder()) else ():
        file.unlink(missing_ok=True)


def of_all_processes() -> bool:
    """Whether worker processes share their metrics; if not, they are of this process."""
    return _folder() is not None


class _Present(Collector):
    """Ours of another collector's metrics, without the zeros of `schedule_info`: a label set once used stays in the files."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    @override
    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            if metric.name == "flexi_schedule_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            for sample in metric.samples:
                if not sample.labels.get(MODEL, "other"):  # an empty label is none, to Prometheus
                    del sample.labels[MODEL]
            if metric.name.startswith("flexi_"):
                yield metric


def _present() -> _Present:
    if not (folder := _folder()):
        return _Present(REGISTRY)
    _forget_dead_workers(folder)
    return _Present(MultiProcessCollector(None))


def _forget_dead_workers(folder: Path) -> None:
    """Remove the gauges of processes that ended without saying so: their queue would be counted until a successor starts."""
    matches = (re.fullmatch(r"gauge_live\w+_(\d+)\.db", file.name) for file in folder.iterdir())
    for pid in {int(match[1]) for match in matches if match}:
        if not Path(f"/proc/{pid}").exists():
            with suppress(FileNotFoundError):  # another worker that is asked does the same
                mark_process_dead(pid)


def _patiently(read: Callable[[], T]) -> T:
    for _ in range(PAGE_TRIES - 1):
        with suppress(struct.error):  # another process has made its file a moment ago, and nothing is in it yet
            return read()
        time.sleep(PAGE_WAIT)
    return read()


def _folder() -> Path | None:
    name = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(name) if name else None
