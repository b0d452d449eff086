"""Who may wait. A queue that is too long refuses at once and says when to come back, which beats a promise nobody can keep."""

from __future__ import annotations

import threading
from collections import Counter
from math import inf

from registry.errors import Overloaded
from server.batching.moving_average import MovingAverage


class Admission:
    """The work that was accepted and not done yet, bounded in predicted seconds: MACs times the measured pace.

    In all, and for each key, so that one client's flood leaves room for the others. Who has nothing in the queue is let in
    however large the request is: else it could never be served. Background work has bounds of its own, as large: it keeps
    nobody else out. Any thread may call.
    """

    def __init__(self, max_seconds: float, max_key_seconds: float = inf, pace: float = 0.0) -> None:
        """`pace` is a first guess in seconds per MAC; at 0 nothing is refused before the first measurement."""
        self.max_seconds = max_seconds
        self.max_key_seconds = max_key_seconds
        self._pace = MovingAverage(pace)
        self._macs = {False: Counter[str](), True: Counter[str]()}  # by whether it is background work, and by key
        self._lock = threading.Lock()

    def measured(self, macs: int, seconds: float) -> None:
        """Learn from a wave that ran."""
        self._pace.add(seconds / macs)

    @property
    def seconds_per_mac(self) -> float:
        """The measured pace; 0 where nothing is known of it."""
        return self._pace.value

    def enter(self, key: str, macs: int, key_seconds: float | None = None, *, background: bool = False) -> None:
        """Accept so much work, or raise `Overloaded`. `key_seconds` is the key's own bound, where it has one."""
        with self._lock:
            accepted = self._macs[background]
            whole, own = accepted.total(), accepted[key]
            self._refuse_past(self.max_seconds, whole, macs, "the queue")
            self._refuse_past(self.max_key_seconds if key_seconds is None else key_seconds, own, macs, "your queue")
            accepted[key] += macs

    def add(self, key: str, macs: int, *, background: bool = False) -> None:
        """Accept work that was accepted before, and is to run once more. Refuses nothing."""
        with self._lock:
            self._macs[background][key] += macs

    def done(self, key: str, macs: int, *, background: bool = False) -> None:
        """Forget so much of the key's accepted work: it ran, or will never run."""
        with self._lock:
            accepted = self._macs[background]
            accepted[key] -= macs
            if not accepted[key]:
                del accepted[key]

    @property
    def seconds(self) -> float:
        """The work accepted and not done yet, without background work, as it is predicted now."""
        with self._lock:
            return self._macs[False].total() * self.seconds_per_mac

    @property
    def background_seconds(self) -> float:
        """The same of background work."""
        with self._lock:
            return self._macs[True].total() * self.seconds_per_mac

    def _refuse_past(self, limit: float, queued: int, wanted: int, whose: str) -> None:
        seconds = queued * self.seconds_per_mac
        over = seconds + wanted * self.seconds_per_mac - limit
        if queued and over > 0:
            wait = max(1.0, min(over, seconds))
            message = f"{whose} holds {seconds:.1f} s of work and the limit is {limit:g} s: try again in {wait:.0f} s"
            raise Overloaded(message, retry_after=wait)
