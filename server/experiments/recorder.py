"""Events on their way from a request to the registry's store, without keeping the request waiting or ever failing it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from registry.errors import FlexiError
from registry.stores.base import ObjectStore
from server.experiments.events import Event, write
from server.experiments.outbox import Outbox
from server.telemetry import metrics

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.5  # an event is on disk after so long: what a crash can lose
SEND_SECONDS = 5.0  # and in the store after so long
CLOSE_SECONDS = 10.0  # for the last send: within what the server takes to go down
CAPACITY = 50_000  # events in memory, should the disk take none; more are lost
BATCH = 5_000  # events written at once


class Recorder:
    """Memory → disk in one thread, disk → store in another: a store that hangs keeps nothing from the disk.

    What cannot be kept is counted as lost and logged, never raised.
    """

    def __init__(self, open_store: Callable[[], ObjectStore], prefix: str, folder: Path) -> None:
        """Events of stream `s` get keys `prefix/s/…`. `open_store` is called until it succeeds: the store may be away."""
        self._open_store = open_store
        self._prefix = prefix
        self._folder = folder
        self._outbox: Outbox | None = None
        self._events: deque[tuple[str, Event]] = deque()
        self._lock = threading.Lock()  # around the events, and what the outbox accepts
        self._stop = threading.Event()
        self._inherited = False
        self._faults: set[str] = set()
        self._writer = threading.Thread(target=self._keep_writing, name="recorder", daemon=True)
        self._sender = threading.Thread(target=self._keep_sending, name="recorder-sender", daemon=True)
        self._box()

    def start(self) -> None:
        """Begin to write and send."""
        self._writer.start()
        self._sender.start()

    def record(self, stream: str, event: Event) -> None:
        """Take an event; costs an append."""
        with self._lock:
            if len(self._events) >= CAPACITY:
                metrics.events_lost_total.inc()
                self._failed("memory", f"events are lost: {CAPACITY} wait in memory")
                return
            self._events.append((stream, event))
            if self._outbox:
                self._outbox.accept()

    def close(self) -> None:
        """Write and send what is left, as far as it goes; what the store does not take stays on disk for the next start."""
        self._stop.set()
        if self._writer.ident is None:
            self.start()
        self._writer.join()
        self._sender.join(CLOSE_SECONDS)
        if self._sender.is_alive():  # it goes with the process, and so does the lock
            log.warning("events stay on disk for the next start: the registry did not take them in %g s", CLOSE_SECONDS)
        elif self._outbox:
            self._outbox.close()

    def write(self) -> None:
        """Bring what is in memory to disk."""
        while self._events and (outbox := self._box()):
            with self._lock:
                batch = list(islice(self._events, BATCH))
            streams = defaultdict[str, list[Event]](list)
            for stream, event in batch:
                streams[stream].append(event)
            try:
                outbox.write({stream: write(events) for stream, events in streams.items()}, len(batch))
            except OSError as error:
                self._failed("disk", f"events wait in memory, the disk does not take them: {error}")
                return
            with self._lock:
                for _ in batch:
                    self._events.popleft()
            metrics.events_total.inc(len(batch))
            self._mended("disk")
            self._mended("memory")

    def send(self, *, last: bool = False) -> None:
        """Bring what is on disk to the store. `last`: nothing will be written any more."""
        if (outbox := self._outbox) is None:
            return
        try:
            store = self._open_store()
            if not self._inherited:
                for lost in outbox.inherit(store, self._prefix):
                    if lost:
                        metrics.events_lost_total.inc(lost)
                        log.warning("%d events of a process that died were never written", lost)
                self._inherited = True
            outbox.send(store, self._prefix, last=last)
        except (FlexiError, OSError) as error:
            self._failed("store", f"events wait on disk, the registry does not take them: {error}")
            return
        self._mended("store")

    def _keep_writing(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            _attempt(self.write)
        _attempt(self.write)

    def _keep_sending(self) -> None:
        while not self._stop.wait(SEND_SECONDS):
            _attempt(self.send)
        self._writer.join()
        _attempt(partial(self.send, last=True))

    def _box(self) -> Outbox | None:
        """The outbox, made as soon as the disk lets us. Events that came before it are accepted now."""
        if self._outbox is None:
            try:
                outbox = Outbox(self._folder)
            except OSError as error:
                self._failed("disk", f"events wait in memory, there is no folder for them: {error}")
                return None
            with self._lock:
                outbox.accept(len(self._events))
                self._outbox = outbox
        return self._outbox

    def _failed(self, what: str, text: str) -> None:
        if what not in self._faults:
            log.warning("%s", text)
        self._faults.add(what)

    def _mended(self, what: str) -> None:
        if what in self._faults:
            self._faults.discard(what)
            log.info("the %s takes events again", what)


def _attempt(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # a bug here must cost no request its answer
        log.exception("recording failed")
