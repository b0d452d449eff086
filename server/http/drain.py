"""Going down without losing anybody: no new requests, the running ones finish, then the process ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from server.errors import Stopping
from server.requests.context import may_be_broken_off

log = logging.getLogger(__name__)

LAST_RESORT_SECONDS = 15.0  # a device that hangs must not keep the process


class Drain:
    """Knows which requests run, and sees them out: at SIGTERM, or when this process finds that it cannot work any more."""

    def __init__(self) -> None:
        self.stopping = False
        self.reason = "the server is stopping"
        self._running: set[asyncio.Timeout] = set()
        self._handler: Callable[[int, FrameType | None], Any] | int | None = signal.SIG_DFL

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Around all that a request does. Raises `Stopping`: before it begins, or out of one that takes too long."""
        if self.stopping:
            raise Stopping(self.reason)
        try:
            async with asyncio.timeout(None) as limit:
                self._running.add(limit)
                try:
                    with may_be_broken_off(limit.expired):
                        yield
                finally:
                    self._running.remove(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Stopping("the server is stopping and could not finish this request") from None

    def at_sigterm(self, seconds: float) -> None:
        """Come before the HTTP server's own handler, which closes the socket that new requests are refused on."""
        self._handler = signal.getsignal(signal.SIGTERM)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.begin, seconds)

    def begin(self, seconds: float, last: Callable[[], None] | None = None) -> None:
        """Refuse new requests, give the running ones `seconds`, call `last`, then end the process as SIGTERM would have."""
        if self.stopping:
            return
        self.stopping = True
        log.info("stopping", extra={"fields": {"running": len(self._running), "seconds": seconds}})
        loop = asyncio.get_running_loop()
        for limit in self._running:
            limit.reschedule(loop.time() + seconds)
        last_resort = threading.Timer(seconds + LAST_RESORT_SECONDS, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
        self._end = loop.create_task(self._end_when_empty(last))

    async def _end_when_empty(self, last: Callable[[], None] | None) -> None:
        while self._running:
            await asyncio.sleep(0.05)
        if last:
            last()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._handler)
        signal.raise_signal(signal.SIGTERM)
