"""The requests underway, so that anybody with their key can cancel one by its id."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request

from registry.errors import FlexiError
from server.errors import Cancelled, DeadlineExceeded

T = TypeVar("T")


class RunningRequests:
    """What stops each request, by key and request id; an id that a key uses twice at once means both. For one event loop."""

    def __init__(self) -> None:
        self._stops: defaultdict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)

    def __len__(self) -> int:
        """How many requests are underway."""
        return sum(map(len, self._stops.values()))

    @contextmanager
    def entered(self, key: str, request_id: str) -> Iterator[asyncio.Event]:
        """While a request runs; the event is set when it should not go on."""
        stop = asyncio.Event()
        self._stops[key, request_id].add(stop)
        try:
            yield stop
        finally:
            self._stops[key, request_id].remove(stop)
            if not self._stops[key, request_id]:
                del self._stops[key, request_id]

    def cancel(self, key: str, request_id: str) -> int:
        """Stop this key's requests of this id; how many there were."""
        stops = self._stops.get((key, request_id), set())
        for stop in stops:
            stop.set()
        return len(stops)


async def disconnected(request: Request) -> None:
    """Return when the client has gone. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_wanted(
    work: Awaitable[T],
    ends: Sequence[tuple[Coroutine[Any, Any, Any], FlexiError]],
    seconds: float | None = None,
    limit: float | None = None,
) -> T:
    """The result of `work`, unless one of `ends` comes first, whose error is raised, or time is over (`DeadlineExceeded`).

    `seconds` are those left of `limit`, which the error names; without them there is no hurry. Work that is given up has ended
    when this returns. A plain API method of BentoML keeps running when the client goes away, so somebody has to look.
    """
    task = asyncio.ensure_future(work)
    watchers = {asyncio.ensure_future(end): error for end, error in ends}
    try:
        timeout = None if seconds is None else max(seconds, 0.0)
        await asyncio.wait({task, *watchers}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        for watcher, error in watchers.items():
            if watcher.done():
                raise error
        raise DeadlineExceeded(f"not done after {(limit or seconds or 0.0) * 1000:.0f} ms", param="deadline_ms")
    finally:
        for waiting in (task, *watchers):
            waiting.cancel()
        await asyncio.wait((task, *watchers))  # what it says at its end, metrics and log lines, is said before our caller's


@dataclass(frozen=True)
class Patience:
    """How long a request's work is wanted: `limit` seconds from its arrival, by the monotonic clock, or until `stop` is set."""

    arrived: float
    limit: float
    stop: asyncio.Event

    async def wait(self, work: Awaitable[T], *ends: tuple[Coroutine[Any, Any, Any], FlexiError]) -> T:
        """The result of `work`, unless time is over, the request is cancelled, or one of `ends` comes."""
        seconds = self.arrived + self.limit - monotonic()
        return await while_wanted(work, [*ends, (self.stop.wait(), Cancelled())], seconds, self.limit)


async def gather(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for all; one failure, or cancellation, gives up all of them."""
    waiting = [asyncio.wrap_future(future) for future in futures]
    try:
        return await asyncio.gather(*waiting)
    finally:
        for future in waiting:
            future.cancel()  # reaches the thread's own future; too late for a finished one, which is right
