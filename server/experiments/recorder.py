"""Events on their way from a request to the registry's store, without keeping the request waiting or ever failing it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import monotonic

from registry.errors import FlexiError
from registry.store import ObjectStore
from server import metrics
from server.experiments.events import Event, write
from server.experiments.outbox import Outbox

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.5  # an event is on disk after so long: what a crash can lose
SEND_SECONDS = 5.0  # and in the store after so long
CAPACITY = 50_000  # events in memory, should the disk be full
FILES = 10_000  # on disk, should the store be away: a day of it, and more are lost
BATCH = 5_000  # events in one file


class Recorder:
    """Memory → disk → store, in a thread of its own. What cannot be kept is counted as lost and logged, never raised."""

    def __init__(self, open_store: Callable[[], ObjectStore], prefix: str, folder: Path) -> None:
        """Events of stream `s` get keys `prefix/s/…`. `open_store` is called until it succeeds: the store may be away."""
        self._open_store = open_store
        self._prefix = prefix
        self._outbox = _outbox(folder)
        self._events: deque[tuple[str, Event]] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._inherited = False
        self._faults: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write and send."""
        self._thread.start()

    def record(self, stream: str, event: Event) -> None:
        """Take an event; costs an append."""
        with self._lock:
            if len(self._events) >= CAPACITY:
                metrics.events_lost_total.inc()
                return
            self._events.append((stream, event))
            if self._outbox:
                self._outbox.accept()

    def close(self) -> None:
        """Write and send what is left, as far as it goes; what the store does not take stays on disk for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write()
        self.send()
        if self._outbox:
            self._outbox.close()

    def write(self) -> None:
        """Bring what is in memory to disk."""
        while self._outbox and self._events:
            if self._outbox.waiting() >= FILES:
                self._lose("the store has been away for too long")
                return
            with self._lock:
                batch = list(islice(self._events, BATCH))
            streams = defaultdict[str, list[Event]](list)
            for stream, event in batch:
                streams[stream].append(event)
            try:
                self._outbox.write({stream: write(events) for stream, events in streams.items()}, len(batch))
            except OSError as error:
                self._failed("disk", f"events wait in memory, the disk does not take them: {error}")
                return
            self._mended("disk")
            with self._lock:
                for _ in batch:
                    self._events.popleft()
            metrics.events_total.inc(len(batch))

    def send(self) -> None:
        """Bring what is on disk to the store."""
        if self._outbox is None:
            return
        try:
            store = self._open_store()
            if not self._inherited:
                lost, self._inherited = self._outbox.inherit(store, self._prefix), True
                if lost:
                    metrics.events_lost_total.inc(lost)
                    log.warning("%d events of a process that died were never written", lost)
            self._outbox.send(store, self._prefix)
        except (FlexiError, OSError) as error:
            self._failed("store", f"events wait on disk, the registry does not take them: {error}")
            return
        self._mended("store")

    def _run(self) -> None:
        sent = monotonic()
        while not self._stop.wait(WRITE_SECONDS):
            try:
                self.write()
                if monotonic() >= sent + SEND_SECONDS:
                    sent = monotonic()
                    self.send()
            except Exception:  # a bug here must cost no request its answer
                log.exception("recording failed")

    def _lose(self, why: str) -> None:
        with self._lock:
            lost = len(self._events)
            self._events.clear()
            if self._outbox:
                self._outbox.accept(-lost)  # they are told now, and not once more after a crash
        metrics.events_lost_total.inc(lost)
        log.error("%d events are lost: %s", lost, why)

    def _failed(self, what: str, text: str) -> None:
        if what not in self._faults:
            log.warning("%s", text)
        self._faults.add(what)

    def _mended(self, what: str) -> None:
        if what in self._faults:
            self._faults.remove(what)
            log.info("events go through the %s again", what)


def _outbox(folder: Path) -> Outbox | None:
    try:
        return Outbox(folder)
    except OSError as error:
        log.error("events are not recorded: %s", error)
        return None
