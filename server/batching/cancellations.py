"""Images that nobody waits for any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from server.batching.fair_queue import FairQueue
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import ImagesInFlight


class Cancellations:
    """Remembers which futures were cancelled, in whatever thread, until the engine's thread drops their images."""

    def __init__(self) -> None:
        self._cancelled = deque[ImageTask]()

    def watch(self, tasks: Sequence[ImageTask]) -> None:
        """Any thread may call."""
        for task in tasks:
            task.future.add_done_callback(
                lambda future, task=task: self._cancelled.append(task) if future.cancelled() else None  # type: ignore[misc]
            )

    def drop(self, queue: FairQueue[ImageTask], images: ImagesInFlight) -> None:
        """Take those that were cancelled out of the queue, or out of flight."""
        while self._cancelled:
            task = self._cancelled.popleft()
            if not task.left:
                queue.remove(task)
                images.leave(task, "cancelled")
