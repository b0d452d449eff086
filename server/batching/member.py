"""What the thread that uses the device needs of each model that takes part."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from server.batching.fair_queue import FairQueue
from server.batching.image_task import ImageTask
from server.batching.inflight_wave import InflightWave


class Member(Protocol):
    """What one model does in the thread. Methods raise `DeviceLost` and its like."""

    @property
    def counted_as(self) -> str:
        """The model's name in metrics, log lines and traces."""

    @property
    def queue(self) -> FairQueue[ImageTask]:
        """Images that wait for it."""

    @property
    def tasks(self) -> Collection[ImageTask]:
        """Images in its waves."""

    @property
    def images(self) -> Collection[ImageTask]:
        """All that it took in and has not handed out."""

    @property
    def capturing(self) -> bool:
        """Whether it has graphs to capture."""

    @property
    def decoding(self) -> bool:
        """Whether latents wait for its decoder, or are at work there."""

    def hurries(self, task: ImageTask, now: float) -> bool:
        """Whether its deadline can be met, but only just."""

    def warming(self) -> Iterator[None]:
        """Get ready to serve, in small pieces."""

    def capture(self) -> None:
        """Capture the next graph, if one is wanted."""

    def admit(self) -> None:
        """Drop what nobody wants and take in what fits."""

    def launch(self) -> InflightWave | None:
        """Ask the device for a wave."""

    def predicted_seconds(self, inflight: InflightWave) -> float:
        """What a wave should take."""

    def land(self, inflight: InflightWave) -> None:
        """Wait for a wave's end, and have decoded what it finished."""

    def advance(self) -> None:
        """Hand out what is decoded, and ask for more."""

    def finish(self) -> None:
        """Wait until all that waits for the decoder is handed out."""

    def export(self) -> None:
        """Tell Prometheus how much there is to do."""

    def fail(self, error: Exception) -> None:
        """A step failed: fail what is in flight."""

    def retire(self, reason: str) -> None:
        """The thread ends, or the model leaves: fail what is left, and refuse what comes."""
