"""Where images come in, from whatever thread: specs become tasks that wait in the queue, accepted by admission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic

from engine.model import Model
from engine.slots import SlotMemory
from registry.errors import InvalidInput
from server.batching.admission import Admission
from server.batching.cancellations import Cancellations
from server.batching.fair_queue import FairQueue
from server.batching.graph_captures import GraphCaptures
from server.batching.image_task import ImageResult, ImageSpec, ImageTask, Preview, Progress, macs_before
from server.errors import NotReady
from server.loras.adapter_set import AdapterSet
from server.telemetry import metrics
from server.telemetry.tracing import image_trace


def no_loras(adapters: AdapterSet) -> Model:
    """Of an engine that has none."""
    raise NotReady(f"{adapters} cannot be added here", param="loras")


class Intake:
    """One model's. Any thread may call."""

    def __init__(
        self,
        model: Model,
        admission: Admission,
        slots: SlotMemory,
        queue: FairQueue[ImageTask],
        cancellations: Cancellations,
        captures: GraphCaptures | None,
        adapted: Callable[[AdapterSet], Model],
    ) -> None:
        """captures: of an engine with graphs. adapted: the model with LoRAs, which is in memory already."""
        self._model, self._admission, self._slots, self._queue = model, admission, slots, queue
        self._cancellations, self._captures, self._adapted = cancellations, captures, adapted
        self._lengths = {1}  # of contexts whose waves are captured, or about to be

    def submit(
        self, specs: Sequence[ImageSpec], preview: Preview | None = None, progress: Progress | None = None
    ) -> list[Future[ImageResult]]:
        """Queue all of these images or none.

        Raises `Overloaded`, `NotReady` when the engine is stopping or LoRAs are not there, and `InvalidInput` for a mask that
        there is no memory for beside the image's rows.

        All must be of one key, one class and one set of LoRAs: background work runs while no other client's image is in flight,
        and idle work, which whoever submits it bounds, only while nobody waits at all.
        `preview` and `progress` are called in the engine's thread.
        """
        now, first = monotonic(), specs[0]
        if first.keeps and self._slots.most(first.size, first.chunks) < first.unet_rows + 1:
            message = f"the memory of this server holds {first.unet_rows} rows of this size and no mask beside them"
            raise InvalidInput(f"{message}: FLEXI_CACHE_MIB says how much it is", param="mask")
        adapted = self._adapted(first.adapters) if first.adapters else None
        tasks = [
            ImageTask(
                spec,
                now,
                macs_before(spec, self._model.macs_at(spec.size, spec.chunks)),
                preview,
                image_trace(),
                adapted=adapted,
                progress=progress,
            )
            for spec in specs
        ]
        self._cancellations.watch(tasks)
        macs = sum(task.remaining_macs for task in tasks)
        if not first.idle:
            self._admission.enter(first.key, macs, first.key_seconds, background=first.background)
        try:
            self._queue.put(tasks)
        except NotReady:
            if not first.idle:
                self._admission.done(first.key, macs, background=first.background)
            raise
        metrics.queue_images.set(len(self._queue))
        self._capture_lengths({spec.chunks for spec in specs if not spec.adapters})
        return [task.future for task in tasks]

    def _capture_lengths(self, chunks: set[int]) -> None:
        """Until contexts of such lengths are captured, their waves run eagerly."""
        if self._captures:
            for length in chunks - self._lengths:
                self._lengths.add(length)
                self._captures.want((), length)
