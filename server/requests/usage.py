"""What finished images took, added up once: the answer, the log line and the event of an experiment say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from server.batching.image_task import ImageResult


@dataclass(frozen=True)
class Usage:
    """Of several images: MACs and steps of all, times in seconds of the one that took longest."""

    images: int
    macs: int
    steps: Counter[str]
    queue_seconds: float
    denoise_seconds: float

    @classmethod
    def of(cls, results: Collection[ImageResult]) -> Usage:
        """The sums over these results; all zeros where there is none."""
        return cls(
            images=len(results),
            macs=sum(result.macs for result in results),
            steps=sum((result.steps for result in results), Counter()),
            queue_seconds=max((result.queue_seconds for result in results), default=0.0),
            denoise_seconds=max((result.denoise_seconds for result in results), default=0.0),
        )

    @property
    def computed_steps(self) -> int:
        """How many full and partial steps ran, null steps not counted."""
        return self.steps["full"] + self.steps["partial"]


def milliseconds(seconds: float) -> float:
    """Seconds in milliseconds, rounded to the microsecond."""
    return round(1000 * seconds, 3)
