"""CUDA graphs for schedules that are about to come into force, captured while the engine serves others."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from engine.device import lost
from engine.wave_table import WaveShape
from engine.waves import Waves
from registry.schedule import Branch, said
from server.batching.image_task import ImageTask
from server.telemetry import metrics

log = logging.getLogger(__name__)


class _Wish(NamedTuple):
    branches: Collection[Branch]
    chunks: int
    granted: Future[None]


class GraphCaptures:
    """Any thread may `want`, and the engine's takes one `step` between two waves, so that no image waits for all of them."""

    def __init__(self, waves: Waves[ImageTask]) -> None:
        self._waves = waves
        self._wishes = deque[_Wish]()
        self._open, self._lock = True, threading.Lock()
        self._shapes: Iterator[WaveShape] | None = None  # of the first wish, while it is captured

    @property
    def wanted(self) -> bool:
        """Whether there is anything left to capture."""
        return bool(self._wishes)

    def want(self, branches: Collection[Branch], chunks: int = 1) -> Future[None]:
        """Capture what schedules of these branches need, for contexts of so many chunks too.

        The future is done when it is there, or cannot be.
        """
        wish = _Wish(branches, chunks, Future())
        with self._lock:
            if self._open:
                self._wishes.append(wish)
            else:
                wish.granted.set_result(None)
        return wish.granted

    def step(self) -> None:
        """Capture the next graph, if one is wanted. Raises what a lost device raises; what is not captured runs eagerly."""
        if not self._wishes:
            return
        self._shapes = self._shapes or capture(self._waves, self._wishes[0].branches, self._wishes[0].chunks)
        try:
            if next(self._shapes, None):
                return
        except Exception as error:
            if lost(error):
                raise
            log.exception("a graph could not be captured: waves without one run eagerly, and are slower")
            _export(self._waves)
        self._shapes = None
        self._wishes.popleft().granted.set_result(None)

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._lock:
            self._open = False
        while self._wishes:
            self._wishes.popleft().granted.set_result(None)


def capture(waves: Waves[ImageTask], branches: Collection[Branch], chunks: int = 1) -> Iterator[WaveShape]:
    """What `waves.prepare` captures, counted in the metrics and, when all of it is there, logged."""
    start, count = time.monotonic(), 0
    for shape in waves.prepare(branches, chunks):
        count += 1
        _export(waves)
        yield shape
    if count:
        fields = {
            "graphs": count,
            "branches": [said(branch) for branch in sorted(branches)],
            "chunks": chunks,
            "bytes": waves.graph_bytes,
        }
        log.info("graphs captured", extra={"fields": fields | {"seconds": round(time.monotonic() - start, 3)}})


def _export(waves: Waves[ImageTask]) -> None:
    metrics.cuda_graphs.set(waves.graph_count)
    metrics.cuda_graph_bytes.set(waves.graph_bytes)
