"""How long a worker took to start, by part: for the log and for Prometheus."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from server.telemetry import metrics

READY = "ready"  # the whole, among the parts


class Start:
    """Divides the time since this process began into parts, one after the other."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._began = self._since = time.monotonic() - _age()

    def passed(self, part: str) -> None:
        """This part ends now: all since the one before it, or since the process began."""
        now = time.monotonic()
        self._note(part, self._parts.get(part, 0.0) + now - self._since)
        self._since = now

    def ready(self) -> dict[str, float]:
        """The start is over: every part in seconds, the whole as the last one."""
        self._note(READY, time.monotonic() - self._began)
        return {part: round(seconds, 2) for part, seconds in self._parts.items()}

    def _note(self, part: str, seconds: float) -> None:
        self._parts[part] = seconds
        metrics.start_seconds.labels(part).set(seconds)


def _age() -> float:
    """Seconds since this process began, before its first line of Python; 0 where the system does not say."""
    with suppress(OSError, AttributeError, ValueError, IndexError):
        began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # clock ticks since the system's start
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(began) / os.sysconf("SC_CLK_TCK")
    return 0.0
