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
        self._models = [self]

    def beside(self) -> Admission:
        """For another model of the same server: its work has a pace of its own, and counts together with all others'."""
        other = Admission(self.max_seconds, self.max_key_seconds)
        other._lock, other._models = self._lock, self._models
        self._models.append(other)
        return other

    def measured(self, macs: int, seconds: float) -> None:
        """Learn from a wave that ran."""
        self._pace.add(seconds / macs)

    @property
    def seconds_per_mac(self) -> float:
        """The measured pace; 0 where nothing is known of it."""
        return self._pace.value

    def enter(
        self, key: str, macs: int, key_seconds: float | None = None, before: float = 0.0, *, background: bool = False
    ) -> None:
        """Accept so much work, or raise `Overloaded`. `key_seconds` is the key's own bound, where it has one.

        before: seconds that pass before any of it can begin, as while its model is loaded.
        """
        with self._lock:
            whole, own = self._seconds(background), self._seconds(background, key)
            wanted = before + macs * self.seconds_per_mac
            self._refuse_past(self.max_seconds, whole + wanted, whole, before, "the queue")
            key_limit = self.max_key_seconds if key_seconds is None else key_seconds
            self._refuse_past(key_limit, own + wanted, own, before, "your queue")
            self._macs[background][key] += macs

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
        """The work of all models accepted and not done yet, without background work, as it is predicted now."""
        with self._lock:
            return self._seconds(background=False)

    @property
    def background_seconds(self) -> float:
        """The same of background work."""
        with self._lock:
            return self._seconds(background=True)

    def _seconds(self, background: bool, key: str | None = None) -> float:
        """Of all models, one key's or everybody's."""
        return sum(model._own_seconds(background, key) for model in self._models)

    def _own_seconds(self, background: bool, key: str | None) -> float:
        macs = self._macs[background]
        return (macs.total() if key is None else macs[key]) * self.seconds_per_mac

    def _refuse_past(self, limit: float, then: float, queued: float, before: float, whose: str) -> None:
        """then: the seconds that the queue would hold; queued: those that it holds."""
        over = then - limit
        if over > 0 and (queued or before):
            wait = max(1.0, min(over, queued + before))
            message = f"{whose} holds {queued:.1f} s of work and the limit is {limit:g} s: try again in {wait:.0f} s"
            if before:
                message = f"the model is being loaded, for {before:.1f} s more; {message}"
            raise Overloaded(message, retry_after=wait)
