"""From the queue into the waves: whoever has room there, with texts and images encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from engine.model import Model
from engine.waves import Waves
from server.batching.cancellations import Cancellations
from server.batching.fair_queue import FairQueue
from server.batching.image_task import ImageTask
from server.batching.images_in_flight import BATCH, ImagesInFlight
from server.batching.text_and_vae import TextAndVae
from server.telemetry import metrics


class Newcomers:
    """Takes images in: clients', then background work, then idle work. For the engine's thread."""

    def __init__(
        self,
        model: Model,
        waves: Waves[ImageTask],
        queue: FairQueue[ImageTask],
        images: ImagesInFlight,
        text_and_vae: TextAndVae,
        cancellations: Cancellations,
        background_rows: int,
        quiet_beside: Callable[[], bool] = lambda: True,
        idle_beside: Callable[[], bool] = lambda: True,
    ) -> None:
        """background_rows: UNet rows of background work in flight at most. More than fill a wave would gain nothing.

        quiet_beside: whether no client waits for an image of another model; idle_beside: whether nobody at all does.
        """
        self._quiet_beside, self._idle_beside = quiet_beside, idle_beside
        self._model = model
        self._waves = waves
        self._queue = queue
        self._images = images
        self._text_and_vae = text_and_vae
        self._cancellations = cancellations
        self._background_rows = background_rows

    def admit(self) -> None:
        """Clients first: where there is no room, other work gives up its place, as much of it as must, and begins anew later.

        One whose text or image cannot be encoded fails alone. Raises `DeviceLost` and its like.
        """
        yielding, room = self._images.yielding, self._waves.slots.trial()
        for task in yielding:
            room.give_back(task.held, task.size, task.chunks)
        tasks = self._queue.take(lambda task: room.take(task.slot_count, task.size, task.chunks), BATCH)
        withdrawn = list[ImageTask]()
        while yielding and len(self._fitting(tasks)) < len(tasks):
            withdrawn += self._images.withdraw([yielding.pop(0)])
        self._cancellations.watch(withdrawn)
        self._queue.put_back(withdrawn)
        if not tasks and all(task.yields for task in self._images) and self._quiet_beside():
            tasks = self._background()
        if not tasks and not self._images and self._idle_beside():
            tasks = self._queue.take_idle()
        try:
            self._images.attempt(tasks, self._encode, "encoding")
        except Exception:  # of the device: whoever ends the queue finds them there
            self._queue.put_back([task for task in tasks if not (task.left or task.slots)])
            raise
        if tasks and all(task.left for task in tasks):
            self._model.network.fence().done()  # raises when the device is lost: then it is not the prompts

    def _background(self) -> list[ImageTask]:
        """The next background tasks, as far as there is room for them, and always one where there is nothing else."""
        room, rows = self._waves.slots.trial(), self._images.background_rows

        def fits(task: ImageTask) -> bool:
            nonlocal rows
            rows += task.unet_rows
            return (rows == task.unet_rows or rows <= self._background_rows) and room.take(
                task.slot_count, task.size, task.chunks
            )

        return self._queue.take_background(fits, BATCH)

    def _fitting(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Those for which there is room now, the first ones before the others."""
        room = self._waves.slots.trial()
        return [task for task in tasks if room.take(task.slot_count, task.size, task.chunks)]

    def _encode(self, tasks: Sequence[ImageTask]) -> None:
        start, fitting = monotonic(), self._fitting(tasks)
        if len(fitting) < len(tasks):  # where one before them has failed, others lie where it would have lain
            self._queue.put_back([task for task in reversed(tasks) if task not in fitting])
            tasks = fitting
        if not tasks:
            return
        specs = [task.spec for task in tasks]
        sources = [self._text_and_vae.source(spec) for spec in specs]
        for task, source in zip(tasks, sources, strict=True):
            task.source = source
        conditions, now = self._text_and_vae.encode(tasks), monotonic()
        inputs = ((self._model.noise(task.spec.seed, task.size), *pair) for task, pair in zip(tasks, conditions, strict=True))
        self._images.enter(tasks, inputs)
        for task in tasks:
            task.fresh = self._model.noises(task.spec.seed, task.size)
            task.taken = start
            if not task.yields:  # others may wait for as long as there are clients, and no alert should take it for load
                metrics.stage_seconds.labels("queue").observe(start - task.queued)
            task.trace.add("queue", task.queued, start)
            task.trace.add("encode", start, now, images=len(tasks))
