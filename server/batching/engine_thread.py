"""Between asyncio and the engine: one thread owns the model and the waves, everybody else submits image specs and waits.

Texts are encoded and images decoded by the same thread. A second executor would not make them faster (they want the same cores
or the same device), would make two threads share one model, and would need every image passed between them. On a CPU the price
is that a wave waits for them. A GPU works behind the host: a wave is launched while the one before it is still at work, so that
the device never waits for Python, and formed as late as that allows, so that newcomers find a place in it; and what a wave
finished is decoded in a lane of the device's own, beside the waves that follow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic

from engine.buckets import EXACT, dense
from engine.config import reason
from engine.curve import CostCurve
from engine.device import lost
from engine.graphs import Graphs
from engine.image_size import ImageSize
from engine.model import Model
from engine.policy import Balanced
from engine.program import Program
from engine.waves import Waves
from registry.schedule import Schedule
from server.batching.admission import Admission
from server.batching.cancellations import Cancellations
from server.batching.decodes import Decodes
from server.batching.denoising import Denoising
from server.batching.fair_queue import FairQueue
from server.batching.forecast import EngineLoad
from server.batching.graph_captures import GraphCaptures, capture
from server.batching.image_task import ImageResult, ImageSpec, ImageTask, Preview, macs_before
from server.batching.images_in_flight import ImagesInFlight, log_fields
from server.batching.inflight_wave import InflightWave
from server.batching.memory import slots_within
from server.batching.newcomers import Newcomers
from server.batching.overlap import NAP, Overlap
from server.batching.shares import TierShares
from server.batching.text_and_vae import TextAndVae
from server.batching.warm_up import warm_up
from server.errors import NotReady
from server.telemetry import metrics
from server.telemetry.tracing import image_trace

log = logging.getLogger(__name__)

FULL_WAVES = 4  # in flight at most, in UNet rows: images on different steps need company to fill one, more only make all later
STOPPING, LOST = "the server is stopping", "the engine is lost: another one is about to take its place"


class EngineThread:
    """The thread, and how others reach it: `submit` image specs, and get a future for each result.

    Whoever cancels a future frees its memory at the engine's next step. A task that fails takes nobody with it, unless the
    device is lost: then everything in flight or queued fails with `NotReady`, and the thread ends.
    """

    def __init__(
        self,
        model: Model,
        admission: Admission,
        max_wave_rows: int,
        cache_bytes: int | None = None,
        graphs: Graphs | None = None,
        others: Collection[ImageSize] = (),
    ) -> None:
        """At most four full waves of UNet rows are in flight, or as many as fit into `cache_bytes`. With `graphs` waves come in
        few sizes, and are one launch each. `others`: sizes of images beside the model's own.

        Raises `InvalidInput` when that is not even one image.
        """
        self._model = model
        self._admission = admission
        self._text_and_vae = TextAndVae(model)
        slots = slots_within(model, FULL_WAVES * max_wave_rows, cache_bytes, others)
        max_wave_rows = min(max_wave_rows, max(map(slots.most, slots.sizes)))  # larger ones never come
        buckets = dense(max_wave_rows) if graphs else EXACT
        self._policy = Balanced(CostCurve(buckets=buckets), max_wave_rows)
        self._waves = Waves[ImageTask](model.network, slots, self._policy, buckets, graphs)
        self._has_graphs, self._captures = graphs is not None, GraphCaptures(self._waves)
        metrics.cache_bytes.set(slots.bytes)
        self._queue = FairQueue(TierShares(self._policy))
        self._images = ImagesInFlight(self._waves, admission)
        self._cancellations = Cancellations()
        self._newcomers = Newcomers(
            model, self._waves, self._queue, self._images, self._text_and_vae, self._cancellations, max_wave_rows
        )
        self._denoising = Denoising(self._waves, self._policy, model.macs_at, self._images, self._text_and_vae, admission)
        self._decodes = Decodes(model.network, self._text_and_vae, self._images)
        self._overlap = Overlap()
        self.end = "the engine is lost"  # why the thread ended, once it has
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._first: Sequence[Schedule] = ()  # that it warms up for
        self._warm = Future[None]()

    def warm_up(self, schedules: Iterable[Schedule]) -> None:
        """Capture what these schedules need, and learn a first pace. Raises what the device raises."""
        branches = {branch for schedule in schedules for branch in schedule.branches}
        for _ in capture(self._waves, branches):
            pass
        self._admission.measured(*warm_up(self._model, self._waves, branches))
        self._decodes.warm_up(self._model, self._waves.slots.sizes)
        metrics.decoder_upcast.set(self._model.decoder.overflowed)

    def prepare(self, schedule: Schedule) -> None:
        """Before a schedule comes into force: capture what it needs and others did not. Blocks; any thread may call."""
        if not self._has_graphs:
            return
        captured = self._captures.want(schedule.branches)
        self._queue.wake()
        captured.result()

    def start(self, schedules: Iterable[Schedule] = ()) -> None:
        """Start the thread, and return when it is warm for these schedules; what was submitted before is worked on too.

        It warms up by itself, because what cuDNN plans for is a thread's own. Raises what the device raises: it has ended then.
        """
        self._first = list(schedules)
        self._thread.start()
        self._warm.result()

    def close(self) -> None:
        """Finish the current step, and the decoding of what is denoised; fail what is left, stop. Blocks as long."""
        self._queue.close(STOPPING)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be worked on."""
        return self._thread.is_alive()

    def submit(self, specs: Sequence[ImageSpec], preview: Preview | None = None) -> list[Future[ImageResult]]:
        """Queue all of these images or none. Raises `Overloaded`, and `NotReady` when the engine is stopping.

        All must be of one key and one class: background work runs while no other client's image is in flight, and idle work,
        which whoever submits it bounds, only while nobody waits at all.
        `preview` is called in the engine's thread.
        """
        now, first = monotonic(), specs[0]
        tasks = [
            ImageTask(spec, now, macs_before(spec, self._model.macs_at(spec.size)), preview, image_trace()) for spec in specs
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
        return [task.future for task in tasks]

    @property
    def background(self) -> tuple[float, float]:
        """Predicted seconds of the background work accepted and not done yet, and the measured seconds of a MAC."""
        return self._admission.background_seconds, self._admission.seconds_per_mac

    @property
    def queue_seconds(self) -> float:
        """Predicted seconds of all the work accepted and not done yet."""
        return self._admission.seconds + self._admission.background_seconds

    def forecast(self, program: Program, unet_rows: int, images: int, tier: str, size: ImageSize | None = None) -> float:
        """Seconds until so many images of this program and size would be done if they came now, before background work.

        Any thread may ask.
        """
        clients = [task for task in self._images if not task.idle]
        beside = self._text_and_vae.seconds_per_image(size)
        load = EngineLoad(self._queue.macs(), clients, self._admission.seconds_per_mac, beside)
        alone = sum(self._policy.curve.seconds(step.need.at(size), unet_rows) for step in program.steps)
        macs = images * self._model.macs_at(size).of_program(program, unet_rows)
        return load.finish(tier, len(program.steps), macs, images, alone)

    def step(self, at_work: InflightWave | None) -> InflightWave | None:
        """Drop what nobody wants, admit what fits, launch a wave behind the one at work, have decoded what that one finished.

        Returns the wave that is now at work, if any. Raises `DeviceLost` and its like.
        """
        self._captures.step()
        start = monotonic()
        self._cancellations.drop(self._queue, self._images)
        self._newcomers.admit()
        launched = self._denoising.launch()
        if launched:
            self._overlap.formed(start, at_work=at_work is not None)
        self._land(at_work)
        if launched and launched.end.done():  # a CPU's
            self._land(launched)
            launched = None
        self._decodes.advance()
        self._export()
        if launched:
            for _ in self._overlap.naps(launched.end, self._denoising.predicted_seconds(launched)):
                self._decodes.advance()
        return launched

    def _run(self) -> None:
        """Work until the queue is closed or the device lost; then nobody waits any more, whatever ended it."""
        try:
            if self._first:
                self.warm_up(self._first)
        except BaseException as error:  # whoever waits for `start` has it
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        end = LOST
        try:
            self._work()
            end = self.end = STOPPING
        except Exception as error:
            self.end = f"the device is lost: {reason(error)}"
            log.error("%s", self.end, extra=log_fields(self._images))
        finally:
            self._queue.close(end)
            self._captures.close()
            self._images.fail([*self._images, *self._queue.empty()], NotReady(end), "")

    def _work(self) -> None:
        at_work: InflightWave | None = None
        while self._has_work(at_work):
            try:
                at_work = self.step(at_work)
            except Exception as error:  # a bug: better to fail what is in flight than to fail for ever
                if lost(error):
                    raise
                log.exception("the engine's step failed", extra=log_fields(self._images))
                with suppress(Exception):  # what was launched before may have come to its end
                    self._land(at_work)
                at_work = None
                self._images.fail(self._images, error, "computing")
                self._denoising.failed()
        with suppress(Exception):
            self._land(at_work)
            self._decodes.finish()

    def _has_work(self, at_work: InflightWave | None) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        if not (at_work or self._waves.tasks or self._captures.wanted):
            if self._decodes:
                self._queue.doze(NAP)
            elif not self._images:
                self._queue.wait()
        return self._queue.is_open

    def _land(self, at_work: InflightWave | None) -> None:
        """Wait for a wave's end, and have decoded what it finished."""
        latents = self._denoising.land(at_work) if at_work else []
        self._overlap.begins()
        if at_work:
            self._decodes.add(latents, at_work.end)

    def _export(self) -> None:
        metrics.queue_images.set(len(self._queue))
        metrics.inflight_images.set(len(self._images))
        metrics.queue_seconds.set(self._admission.seconds)
        metrics.background_seconds.set(self._admission.background_seconds)
