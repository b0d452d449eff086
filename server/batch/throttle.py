"""How many requests a batch has at a server at once: as many as keep it busy, and fewer when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

SHORT, LONG = 5.0, 20.0  # predicted seconds of work before a server: below it has room for more, above it has too much


class Throttle:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989). For the event loop."""

    def __init__(
        self, most: int, clock: Callable[[], float] = monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.limit = 1
        self.most = most
        self._clock = clock
        self._sleep = sleep
        self._at_work = 0
        self._until = 0.0  # when the server wants to be asked again
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around one request: waits until it may be made."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._at_work < self.limit)
            self._at_work += 1
        try:
            while (seconds := self._until - self._clock()) > 0:
                await self._sleep(seconds)
            yield
        finally:
            async with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def served(self, queue_seconds: float) -> None:
        """A request was answered, and the server said how much work it has before it, in predicted seconds."""
        if queue_seconds < SHORT:
            self.limit = min(self.limit + 1, self.most)
        elif queue_seconds > LONG:
            self.limit = max(1, self.limit - 1)

    def refused(self, retry_after: float) -> None:
        """The server has too much to do, or is away: half as many requests, and none for so many seconds.

        Those that were refused at the same time count once.
        """
        if self._until <= self._clock():
            self.limit = max(1, self.limit // 2)
        self._until = max(self._until, self._clock() + retry_after)
