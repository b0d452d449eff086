"""An average that follows what was measured lately."""

from __future__ import annotations

WEIGHT = 0.1  # of the newest value


class MovingAverage:
    """An exponentially weighted average; its first value counts wholly, unless there was a guess."""

    def __init__(self, guess: float = 0.0) -> None:
        self.value = guess

    def add(self, value: float) -> None:
        """Learn from one more value."""
        self.value = value if not self.value else self.value + WEIGHT * (value - self.value)
