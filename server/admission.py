"""Who may wait. A full queue refuses at once and says when to come back, which beats a promise nobody can keep."""

from __future__ import annotations

from collections.abc import Callable

from registry.errors import Overloaded

WEIGHT = 0.1  # of the newest wave in the moving average


class Admission:
    """A bound on waiting rows, and a measured pace (seconds per MAC) that turns queued work into a waiting time."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.seconds_per_mac = 0.0

    def measured(self, macs: int, seconds: float) -> None:
        """Learn from a wave that ran."""
        pace = seconds / macs
        self.seconds_per_mac = (
            pace if not self.seconds_per_mac else self.seconds_per_mac + WEIGHT * (pace - self.seconds_per_mac)
        )

    def admit(self, waiting: int, wanted: int, backlog_macs: Callable[[], int]) -> None:
        """Let `wanted` rows join `waiting` ones, or raise `Overloaded`; `backlog_macs` tells the work accepted so far."""
        if waiting + wanted > self.max_rows:
            seconds = max(1.0, backlog_macs() * self.seconds_per_mac)
            raise Overloaded(
                f"{waiting} images wait already and the limit is {self.max_rows}: try again in {seconds:.0f} s",
                retry_after=seconds,
            )
