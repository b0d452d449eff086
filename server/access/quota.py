"""How many MACs each API key may use: a token bucket that holds one minute's worth and fills continuously."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from registry.errors import InvalidInput
from server.access.keys import Key
from server.errors import QuotaExceeded

MINUTE = 60.0  # seconds
ROUNDING = 1e-6  # seconds: who waits as long as `retry_after` says must not come a rounding error too early


class Quotas:
    """A bucket for each key, full at first. In any t seconds a key takes at most macs_per_minute·(1 + t/60) MACs.

    A bucket is kept as the time at which it will be full again: it then needs no refilling and no memory of an idle key,
    and a limit that changes in the file holds from the next request on (generic cell rate algorithm, ITU-T I.371).
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, key: Key, macs: int) -> None:
        """Use `macs` of the key's quota, all of them or none.

        Raises `QuotaExceeded` with the seconds until there are enough, and `InvalidInput` when there never will be.
        """
        limit = key.macs_per_minute
        if limit is None:
            return
        if macs > limit:
            message = f"the request needs {macs:,} MACs, and the key {key.name} may use {limit:,} in a minute"
            raise InvalidInput(f"{message}: ask for fewer images or a cheaper tier", param="macs_per_minute")
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(key.name, now)) + MINUTE * macs / limit
            if (wait := full_at - now - MINUTE) > ROUNDING:
                raise QuotaExceeded(f"the key {key.name} may use {limit:,} MACs in a minute", retry_after=wait)
            self._full_at[key.name] = full_at

    def give_back(self, key: Key, macs: int) -> None:
        """Return what was taken and not used. More than a full bucket is never kept."""
        if key.macs_per_minute is None:
            return
        with self._lock:
            if key.name in self._full_at:
                self._full_at[key.name] -= MINUTE * macs / key.macs_per_minute
