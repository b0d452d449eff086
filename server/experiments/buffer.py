"""Events in memory, between the request that caused them and the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

from server.experiments.events import Event

CAPACITY = 50_000


class EventBuffer:
    """Events and their streams, the oldest first, at most `CAPACITY`. Any thread may put; one takes out."""

    def __init__(self) -> None:
        self._events: deque[tuple[str, Event]] = deque()
        self._count: Callable[[int], None] | None = None
        self._lock = threading.Lock()  # around both

    def put(self, stream: str, event: Event) -> bool:
        """Take an event, if there is room; costs an append."""
        with self._lock:
            if len(self._events) >= CAPACITY:
                return False
            self._events.append((stream, event))
            if self._count:
                self._count(1)
            return True

    def count_by(self, count: Callable[[int], None]) -> None:
        """Call `count` with the number of events that are there, and from now on with 1 for each that comes."""
        with self._lock:
            count(len(self._events))
            self._count = count

    def oldest(self, limit: int) -> list[tuple[str, Event]]:
        """So many of the oldest events at most. They stay until `remove` is called."""
        with self._lock:
            return list(islice(self._events, limit))

    def remove(self, events: int) -> None:
        """Forget so many of the oldest events."""
        with self._lock:
            for _ in range(events):
                self._events.popleft()
