"""From the queue into the waves: whoever has room there, with the texts encoded."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Takes images in, clients' before idle ones. For the engine's thread."""

    def __init__(
        self,
        model: Model,
        waves: Waves[ImageTask],
        queue: FairQueue,
        images: ImagesInFlight,
        text_and_vae: TextAndVae,
        cancellations: Cancellations,
    ) -> None:
        self._model = model
        self._waves = waves
        self._queue = queue
        self._images = images
        self._text_and_vae = text_and_vae
        self._cancellations = cancellations

    def admit(self) -> None:
        """Clients before idle work, which gives up its place as soon as one comes, and begins anew later.

        One whose text cannot be encoded fails alone. Raises `DeviceLost` and its like.
        """
        idle, room = self._images.idle, self._waves.slots.trial()
        for task in idle:
            room.give_back(task.slots, task.size)
        tasks = self._queue.take(lambda task: room.take(task.unet_rows, task.size), BATCH)
        if len(self._fitting(tasks)) < len(tasks):
            again = self._images.withdraw(idle)
            self._cancellations.watch(again)
            self._queue.put_back(again)
        if not tasks and not self._images:
            tasks = self._queue.take_idle()
        try:
            self._images.attempt(tasks, self._encode, "encoding")
        except Exception:  # of the device: whoever ends the queue finds them there
            self._queue.put_back([task for task in tasks if not (task.left or task.slots)])
            raise
        if tasks and all(task.left for task in tasks):
            self._model.network.fence().done()  # raises when the device is lost: then it is not the prompts

    def _fitting(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Those for which there is room now, the first ones before the others."""
        room = self._waves.slots.trial()
        return [task for task in tasks if room.take(task.unet_rows, task.size)]

    def _encode(self, tasks: Sequence[ImageTask]) -> None:
        start, fitting = monotonic(), self._fitting(tasks)
        if len(fitting) < len(tasks):  # where one before them has failed, others lie where it would have lain
            self._queue.put_back([task for task in reversed(tasks) if task not in fitting])
            tasks = fitting
        if not tasks:
            return
        conditions, now = self._text_and_vae.encode([task.spec for task in tasks]), monotonic()
        inputs = ((self._model.noise(task.spec.seed, task.size), *pair) for task, pair in zip(tasks, conditions, strict=True))
        self._images.enter(tasks, inputs)
        for task in tasks:
            task.fresh = self._model.noises(task.spec.seed, task.size)
            task.taken = start
            metrics.stage_seconds.labels("queue").observe(start - task.queued)
            task.trace.add("queue", task.queued, start)
            task.trace.add("encode", start, now, images=len(tasks))
