"""When the next wave is formed, while the device is at work on one: as late as keeps the device from waiting for the host."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

from engine.device import Fence

NAP = 0.002  # seconds between two looks at the device
DECAY = 0.95  # per wave, of the longest that the host lately took to form one: it may take as long again


class Overlap:
    """Keeps the host just ahead of its device. Times are of a monotonic clock, in seconds; for one thread."""

    def __init__(self) -> None:
        self._began = 0.0  # the device, the wave at work
        self._due = 0.0  # the host is to form the next one
        self._seconds = 0.0  # what that takes the host, waking up included

    def begins(self) -> None:
        """The device begins the newest wave now, or has nothing to do."""
        self._began = monotonic()

    def formed(self, since: float, at_work: bool) -> None:
        """The host has launched a wave that it began to form at `since`; with one at work, it may have begun too late."""
        begin = min(since, self._due) if at_work else since
        self._seconds = max(monotonic() - begin, DECAY * self._seconds)

    def naps(self, end: Fence, seconds: float) -> Iterator[None]:
        """Sleep until it is time to form the next wave, one nap at a time: the one at work should take `seconds`."""
        self._due = self._began + max(seconds - self._seconds, 0.0)
        while not end.done() and (left := self._due - monotonic()) > 0:
            sleep(min(left, NAP))
            yield
