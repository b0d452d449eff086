"""Tells operators' webhook, beside everything else: a bounded queue, few calls at once, each event by one server if possible.

Who tells an event first writes its claim into the store, where it can be made once. Where the store takes no claim (it is away,
or may only be read) the event is told all the same: a receiver knows it by its id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable

from cachetools import LRUCache

from registry.errors import Conflict, FlexiError
from registry.stores.base import ObjectStore
from registry.writer import now
from server.config import Settings
from server.operator_events.event import OperatorEvent
from server.settings.registry import EVENTS_ALLOWED_BY
from server.storage.async_store import AsyncStore
from server.telemetry import metrics
from server.webhooks.delivery import Delivery
from server.webhooks.signature import webhook_secret

log = logging.getLogger(__name__)

FOLDER = "_events/"  # no model can be called so: see registry.document.NAME
WAITING = 256  # events that wait for their call; the next one is dropped
CALLS = 16  # events at work at once: each may take an hour and a quarter of tries
REMEMBERED = 4096  # ids that this process was told of


class Announcer:
    """Any thread may tell it an event: that never blocks, and raises nothing. One event loop calls the webhook."""

    def __init__(self, url: str, delivery: Delivery, claims: AsyncStore) -> None:
        self._url, self._delivery, self._claims = url, delivery, claims
        self._waiting: deque[OperatorEvent] = deque()
        self._known: LRUCache[str, bool] = LRUCache(REMEMBERED)
        self._lock = threading.Lock()  # of the two above
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()

    def tell(self, event: OperatorEvent) -> None:
        """Have it told, once by this process. One for which there is no room is not known: it may be told again later."""
        with self._lock:
            if event.id in self._known:
                return
            if fits := len(self._waiting) < WAITING:
                self._known[event.id] = True
                self._waiting.append(event)
        if not fits:
            self._ended(event, "dropped", f"{WAITING} wait already")
        elif self._loop:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def follow(self) -> None:
        """Call the webhook for ever. What is under way when this is cancelled is told no more."""
        self._loop = asyncio.get_running_loop()
        free = asyncio.Semaphore(CALLS)
        async with asyncio.TaskGroup() as calls:
            while True:
                self._arrived.clear()
                while self._waiting:
                    await free.acquire()
                    task = calls.create_task(self._announce(self._waiting.popleft()))
                    task.add_done_callback(lambda _: free.release())
                await self._arrived.wait()

    def close(self) -> None:
        """Ask the store nothing any more."""
        self._claims.close()

    async def _announce(self, event: OperatorEvent) -> None:
        try:
            if not await self._claim(event):
                self._ended(event, "elsewhere")
                return
            fault = await self._delivery.deliver(self._url, event.id, event.body)
            self._ended(event, "failed" if fault else "ok", fault)
        except Exception:  # whatever it is, other events are told
            log.exception("an operators' event was not told: %s", event.id)

    async def _claim(self, event: OperatorEvent) -> bool:
        """Whether it is this server's to tell."""
        try:
            if any(map(event.is_claim, await self._claims.list(FOLDER))):
                return False
            await self._claims.create(FOLDER + event.claim(now()), json.dumps({"host": socket.gethostname()}).encode())
        except Conflict:
            return False
        except FlexiError as error:
            log.info("an operators' event is told without a claim: %s", error)
        return True

    def _ended(self, event: OperatorEvent, outcome: str, why: str = "") -> None:
        metrics.operator_events_total.labels(event.type, outcome).inc()
        if outcome in ("ok", "failed"):
            metrics.webhooks_total.labels(outcome).inc()
        if why:
            log.warning("operators were not told", extra={"fields": {"id": event.id, "type": event.type, "why": why}})


def announcer_of(settings: Settings, open_store: Callable[[], ObjectStore]) -> Announcer | None:
    """None where operators named no webhook."""
    url, secret = settings.event_webhook, settings.event_webhook_secret
    if url is None or secret is None:
        return None
    delivery = Delivery(webhook_secret(secret.get_secret_value()), settings.event_webhook_private, allowed_by=EVENTS_ALLOWED_BY)
    return Announcer(url.get_secret_value(), delivery, AsyncStore(open_store))
