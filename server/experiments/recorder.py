"""Events on their way from a request to the registry's store, without keeping the request waiting or ever failing it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from registry.errors import FlexiError
from registry.stores.base import ObjectStore
from server.experiments.buffer import CAPACITY, EventBuffer
from server.experiments.events import Event, write
from server.experiments.outbox.outbox import Outbox
from server.telemetry import metrics
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)

WRITE_SECONDS = 0.5  # an event is on disk after so long: what a crash can lose
SEND_SECONDS = 5.0  # and in the store after so long
CLOSE_SECONDS = 10.0  # for the last send: within what the server takes to go down
BATCH = 5_000  # events written at once


class Recorder:
    """Memory → disk → store: `record` puts an event into memory, one thread writes to disk, another one sends to the store.

    Two threads, so that a store that hangs keeps nothing from the disk. What cannot be kept is counted as lost and logged,
    never raised.
    """

    def __init__(self, open_store: Callable[[], ObjectStore], prefix: str, folder: Path) -> None:
        """Events of stream `s` get keys `prefix/s/…`. `open_store` is called until it succeeds: the store may be away."""
        self._open_store = open_store
        self._prefix = prefix
        self._folder = folder
        self._buffer = EventBuffer()
        self._outbox: Outbox | None = None
        self._abandoned_sent = False
        self._faults = Faults(log)
        self._faults_lock = threading.Lock()
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, name="recorder", daemon=True)
        self._sender = threading.Thread(target=self._keep_sending, name="recorder-sender", daemon=True)
        self._open_outbox()

    def start(self) -> None:
        """Begin to write and send."""
        self._writer.start()
        self._sender.start()

    def record(self, stream: str, event: Event) -> None:
        """Take an event; costs an append."""
        if not self._buffer.put(stream, event):
            metrics.events_lost_total.inc()
            self._failed("memory", f"events are lost: {CAPACITY} wait in memory")

    def close(self) -> None:
        """Write and send what is left, as far as it goes; what the store does not take stays on disk for the next start."""
        self._stop.set()
        if self._writer.ident is None:  # `start` was never called
            self.start()
        self._writer.join()
        self._sender.join(CLOSE_SECONDS)
        if self._sender.is_alive():  # it goes with the process, and so does the outbox's lock
            log.warning("events stay on disk for the next start: the registry did not take them in %g s", CLOSE_SECONDS)
        elif self._outbox:
            self._outbox.close()

    def write(self) -> None:
        """Bring what is in memory to disk, as far as the disk takes it."""
        while (batch := self._buffer.oldest(BATCH)) and (outbox := self._open_outbox()):
            try:
                outbox.write(_lines(batch), len(batch))
            except OSError as error:
                self._failed("disk", f"events wait in memory, the disk does not take them: {error.strerror}")
                return
            self._buffer.remove(len(batch))
            metrics.events_total.inc(len(batch))
            self._mended("disk")
            self._mended("memory")

    def send(self, *, last: bool = False) -> None:
        """Bring what is on disk to the store, as far as the store takes it. `last`: nothing will be written any more."""
        if self._outbox is None:
            return
        try:
            store = self._open_store()
            try:
                self._send_abandoned(self._outbox, store)
            finally:
                self._outbox.send(store, self._prefix, last=last)
        except (FlexiError, OSError) as error:
            self._failed("store", f"events wait on disk, the registry does not take them: {error}")
            return
        self._mended("store")

    def _send_abandoned(self, outbox: Outbox, store: ObjectStore) -> None:
        """Send what dead processes left; once is enough."""
        if self._abandoned_sent:
            return
        for lost in outbox.send_abandoned(store, self._prefix):
            if lost:
                metrics.events_lost_total.inc(lost)
                log.warning("%d events of a process that died were never written", lost)
        self._abandoned_sent = True

    def _open_outbox(self) -> Outbox | None:
        """The outbox, made as soon as the disk lets us."""
        if self._outbox is None:
            try:
                outbox = Outbox(self._folder)
            except OSError as error:
                self._failed("disk", f"events wait in memory, nothing can be kept in {self._folder}: {error.strerror}")
                return None
            self._buffer.count_by(outbox.accept)
            self._outbox = outbox
        return self._outbox

    def _keep_writing(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            _attempt(self.write)
        _attempt(self.write)

    def _keep_sending(self) -> None:
        while not self._stop.wait(SEND_SECONDS):
            _attempt(self.send)
        self._writer.join()
        _attempt(partial(self.send, last=True))

    def _failed(self, what: str, text: str) -> None:
        with self._faults_lock:
            self._faults.failed(what, text)

    def _mended(self, what: str) -> None:
        with self._faults_lock:
            self._faults.mended(what)


def _lines(batch: Iterable[tuple[str, Event]]) -> dict[str, bytes]:
    """The lines of a batch, by stream."""
    streams = defaultdict[str, list[Event]](list)
    for stream, event in batch:
        streams[stream].append(event)
    return {stream: write(events) for stream, events in streams.items()}


def _attempt(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # a bug here must cost no request its answer
        log.exception("recording failed")
