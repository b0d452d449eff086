"""Between asyncio and the engine: one thread owns the model and the waves, everybody else submits image specs and waits.

Text encoding and VAE decoding run in the same thread, between two waves. A second executor would not make them faster (they
want the same cores or the same device), would make two threads share one model, and would need every image passed between them;
the price is that a wave waits while the texts of at most `BATCH` newcomers are encoded and what the wave before it finished
is decoded.

A GPU works behind the host, so a wave is launched, with the decoding of the images it finishes, while the one before it is
still at work: the device never waits for Python. It is formed as late as that allows, so that newcomers find a place in it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic

from engine.buckets import EXACT, dense
from engine.curve import CostCurve
from engine.graphs import Graphs
from engine.model import Model
from engine.policy import Balanced
from engine.program import Program
from engine.waves import Waves
from registry.schedule import Schedule
from server.batching import accounting
from server.batching.admission import Admission
from server.batching.decoding import WaveDecoder
from server.batching.fair_queue import FairQueue
from server.batching.forecast import EngineLoad
from server.batching.graph_captures import GraphCaptures, capture
from server.batching.image_task import ImageResult, ImageSpec, ImageTask, Preview, macs_before
from server.batching.images_in_flight import BATCH, ImagesInFlight, log_fields
from server.batching.inflight_wave import InflightWave
from server.batching.memory import slots_within
from server.batching.overlap import Overlap
from server.batching.shares import TierShares
from server.batching.text_and_vae import TextAndVae
from server.batching.warm_up import warm_up
from server.errors import NotReady
from server.telemetry import metrics
from server.telemetry.tracing import image_trace

log = logging.getLogger(__name__)

FAILED_WAVES = 5  # in a row, and the engine counts as lost
FULL_WAVES = 4  # in flight at most, in UNet rows: images on different steps need company to fill one, more only make all later


class EngineThread:
    """The thread, and how others reach it: `submit` image specs, and get a future for each result.

    Whoever cancels a future frees its memory at the engine's next step. A task that fails takes nobody with it, unless the
    device itself fails: then everything in flight does. The thread lives on until `FAILED_WAVES` waves in a row have failed.
    """

    def __init__(
        self,
        model: Model,
        admission: Admission,
        max_wave_rows: int,
        cache_bytes: int | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """At most four full waves of UNet rows are in flight, or as many as fit into `cache_bytes`. With `graphs` waves come in
        few sizes, and are one launch each.

        Raises `InvalidInput` when that is not even one image.
        """
        self._model = model
        self._admission = admission
        self._text_and_vae = TextAndVae(model)
        buckets = dense(max_wave_rows) if graphs else EXACT
        self._policy = Balanced(CostCurve(buckets=buckets), max_wave_rows)
        slots = slots_within(model, FULL_WAVES * max_wave_rows, cache_bytes)
        self._waves = Waves[ImageTask](model.network, slots, self._policy, buckets, graphs)
        self._has_graphs, self._captures = graphs is not None, GraphCaptures(self._waves)
        metrics.cache_bytes.set(slots.bytes)
        self._queue = FairQueue(TierShares(self._policy))
        self._images = ImagesInFlight(self._waves, admission)
        self._decoder = WaveDecoder(model, slots, self._text_and_vae, self._images)
        self._cancelled: deque[ImageTask] = deque()  # by their clients, and not dropped yet
        self._overlap = Overlap()
        self._failed_waves = 0  # in a row
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def warm_up(self, schedules: Iterable[Schedule]) -> None:
        """Before `start`: capture what these schedules need, and learn a first pace. Raises what the device raises."""
        branches = {branch for schedule in schedules for branch in schedule.branches}
        for _ in capture(self._waves, branches):
            pass
        self._admission.measured(*warm_up(self._model, self._waves, branches))
        metrics.decoder_upcast.set(self._model.decoder.overflowed)

    def prepare(self, schedule: Schedule) -> None:
        """Before a schedule comes into force: capture what it needs and others did not. Blocks; any thread may call."""
        if not self._has_graphs:
            return
        captured = self._captures.want(schedule.branches)
        self._queue.wake()
        captured.result()

    def start(self) -> None:
        """Start the thread; what was submitted before is worked on too."""
        self._thread.start()

    def close(self) -> None:
        """Finish the current step, fail what is left, stop. Blocks for a step."""
        self._queue.close()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be worked on."""
        return self._thread.is_alive()

    def submit(self, specs: Sequence[ImageSpec], preview: Preview | None = None) -> list[Future[ImageResult]]:
        """Queue all of these images or none. Raises `Overloaded`, and `NotReady` when the engine is stopping.

        All must be of one key, or all idle: those run while no client waits, and whoever submits them bounds them.
        `preview` is called in the engine's thread.
        """
        now, first = monotonic(), specs[0]
        tasks = [ImageTask(spec, now, macs_before(spec, self._model.macs), preview, image_trace()) for spec in specs]
        for task in tasks:
            self._watch(task)
        macs = sum(task.remaining_macs for task in tasks)
        if not first.idle:
            self._admission.enter(first.key, macs, first.key_seconds)
        try:
            self._queue.put(tasks)
        except NotReady:
            if not first.idle:
                self._admission.done(first.key, macs)
            raise
        metrics.queue_images.set(len(self._queue))
        return [task.future for task in tasks]

    def forecast(self, program: Program, unet_rows: int, images: int, tier: str) -> float:
        """Seconds until so many images of this program would be done if they came now. Any thread may ask."""
        clients = [task for task in self._images if not task.idle]
        load = EngineLoad(self._queue.macs(), clients, self._admission.seconds_per_mac, self._text_and_vae.seconds_per_image)
        alone = sum(self._policy.curve.seconds(step.need, unet_rows) for step in program.steps)
        macs = images * self._model.macs.of_program(program, unet_rows)
        return load.finish(tier, len(program.steps), macs, images, alone)

    def step(self, at_work: InflightWave | None) -> InflightWave | None:
        """Drop what nobody wants, admit what fits, launch a wave behind the one at work, and hand out what that one finished.

        Returns the wave that is now at work, if any.
        """
        self._captures.step()
        start = monotonic()
        self._drop_cancelled()
        self._admit()
        launched = self._launch()
        if launched:
            self._overlap.formed(start, at_work=at_work is not None)
        self._land(at_work)
        if launched and launched.end.done():  # a CPU's
            self._land(launched)
            launched = None
        self._export()
        if launched:
            self._overlap.doze(launched.end, self._predicted_seconds(launched))
        return launched

    def _run(self) -> None:
        at_work: InflightWave | None = None
        while self._has_work(at_work):
            try:
                at_work = self.step(at_work)
            except Exception as error:  # a lost device or a bug: better to fail what is in flight than to fail for ever
                log.exception("the engine's step failed", extra=log_fields(self._images))
                with suppress(Exception):  # what was launched before may have come to its end
                    self._land(at_work)
                at_work = None
                self._images.fail(self._images, error, "computing")
                self._count_failed_wave()
        with suppress(Exception):
            self._land(at_work)
        self._captures.close()
        self._images.fail([*self._images, *self._queue.empty()], NotReady("the server is stopping"), "")

    def _has_work(self, at_work: InflightWave | None) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        if not self._images and not at_work and not self._captures.wanted:
            self._queue.wait()
        return self._queue.is_open

    def _watch(self, task: ImageTask) -> None:
        """Remember the task when its future is cancelled, in whatever thread."""
        task.future.add_done_callback(lambda future: self._cancelled.append(task) if future.cancelled() else None)

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            task = self._cancelled.popleft()
            if not task.left:
                self._queue.remove(task)
                self._images.leave(task, "cancelled")

    def _admit(self) -> None:
        """Clients before idle work, which gives up its place as soon as one comes, and begins anew later."""
        idle, free = self._images.idle, self._waves.slots.free
        tasks = self._queue.take(free + sum(task.unet_rows for task in idle), BATCH)
        if sum(task.unet_rows for task in tasks) > free:
            again = self._images.withdraw(idle)
            for task in again:
                self._watch(task)
            self._queue.put_back(again)
        if not tasks and not self._images:
            tasks = self._queue.take_idle()
        self._images.attempt(tasks, self._encode, "encoding")
        if tasks and all(task.left for task in tasks):
            self._model.network.fence().done()  # raises when the device is lost: then it is not the prompts

    def _encode(self, tasks: Sequence[ImageTask]) -> None:
        start = monotonic()
        conditions, now = self._text_and_vae.encode([task.spec for task in tasks]), monotonic()
        inputs = ((self._model.noise(task.spec.seed), *pair) for task, pair in zip(tasks, conditions, strict=True))
        self._images.enter(tasks, inputs)
        for task in tasks:
            task.taken = start
            metrics.stage_seconds.labels("queue").observe(start - task.queued)
            task.trace.add("queue", task.queued, start)
            task.trace.add("encode", start, now, images=len(tasks))

    def _launch(self) -> InflightWave | None:
        """Ask the device for one wave, and for the images that it finishes."""
        wave = self._waves.launch(monotonic())
        if wave is None:
            return None
        self._images.fail_in(wave)
        if not wave.tasks:
            self._count_failed_wave()
            return None
        accounting.count_launch(wave, self._model.macs)
        task_macs = accounting.count_wave(wave.need, wave.tasks)
        for task, macs in zip(wave.tasks, task_macs, strict=True):
            self._images.settle(task, macs)
        return self._decoder.decode(wave, sum(task_macs))

    def _land(self, inflight: InflightWave | None) -> None:
        """Wait for a wave's end, learn from it, and hand out what it finished."""
        if inflight is None:
            self._overlap.begins()
            return
        wave = self._waves.land(inflight.wave)
        inflight.end.wait()
        self._overlap.begins()
        self._failed_waves = 0
        begun, denoised, decoded = inflight.times(monotonic())
        self._learn(inflight)
        if inflight.images:
            self._text_and_vae.took("decode", decoded - denoised, len(inflight.images))
        self._images.fail_in(wave)
        for task in wave.failed:
            self._text_and_vae.forget(task.spec)
        inflight = self._decoder.landed(inflight)
        for task in [task for task in wave.tasks if not task.left]:
            task.denoised = denoised
            task.trace.add(wave.need.kind, begun, denoised, branch=wave.need.branch, unet_rows=wave.unet_rows)
            if task in inflight.images:
                task.trace.add("decode", denoised, decoded, images=len(inflight.images))
                self._images.finish(task, inflight.images[task])
            elif task in inflight.previews:
                preview = inflight.previews[task]
                self._images.show(task, preview.number, preview.pixels)

    def _learn(self, inflight: InflightWave) -> None:
        wave, kind, seconds = inflight.wave, inflight.wave.need.kind, inflight.wave.seconds
        metrics.wave_rows.labels(kind).observe(wave.unet_rows)
        metrics.wave_seconds.labels(kind).observe(seconds)
        self._admission.measured(inflight.macs, seconds)
        if not wave.failed:  # else it was several calls
            self._policy.curve.observe(wave.need, wave.unet_rows, seconds)

    def _predicted_seconds(self, inflight: InflightWave) -> float:
        wave = inflight.wave
        return self._policy.curve.seconds(wave.need, wave.unet_rows) + self._text_and_vae.decoding(len(inflight.images))

    def _export(self) -> None:
        metrics.queue_images.set(len(self._queue))
        metrics.inflight_images.set(len(self._images))
        metrics.queue_seconds.set(self._admission.seconds)

    def _count_failed_wave(self) -> None:
        """Stop the thread when nothing works any more, so that /livez asks for a restart: a lost device does not come back."""
        self._failed_waves += 1
        if self._failed_waves >= FAILED_WAVES:
            log.error("stopping after %d failed waves in a row", self._failed_waves)
            self._queue.close()
