"""Between asyncio and the engine: one thread owns the model and the waves, everybody else hands in orders and waits.

Text encoding and VAE decoding run in the same thread, between two waves. A second executor would not make them faster (they
want the same cores or the same device), would make two threads share one model, and would need a hand-over for every image;
the price is that a wave waits while the texts of at most `BATCH` newcomers are encoded and what the wave before it finished
is decoded.

A GPU works behind the host, so a wave is launched, with the decoding of the images it finishes, while the one before it is
still at work: the device never waits for Python. It is formed as late as that allows, so that newcomers find a place in it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from time import monotonic

from torch import Tensor

from engine.models import Model
from engine.policy import Balanced
from engine.program import Program
from engine.waves import DenoisingTask, Wave, Waves
from registry.errors import FlexiError
from server.batching import accounting
from server.batching.admission import Admission
from server.batching.fair_queue import FairQueue
from server.batching.forecast import EngineLoad
from server.batching.image_task import ImageResult, ImageSpec, ImageTask, Preview, macs_before
from server.batching.inflight import InflightWave
from server.batching.memory import slots_within
from server.batching.overlap import Overlap
from server.batching.queue import Queue
from server.batching.text_and_vae import TextAndVae
from server.errors import GenerationFailed, NotReady
from server.telemetry import metrics
from server.telemetry.tracing import journey

log = logging.getLogger(__name__)

FAILED_WAVES = 5  # in a row, and the engine counts as lost
BATCH = 8  # texts encoded, or latents decoded, at once
ROWS_IN_FULL_WAVES = 4  # at most in flight: rows on different steps need company to fill a wave, and more only makes all later


class EngineThread:
    """The engine's thread and its two doors: `submit` for orders, a future for each picture.

    Whoever cancels a future frees its row at the engine's next turn. A row that fails takes nobody with it, except that
    an exception in a wave fails the rows of that wave; the thread lives on.
    """

    def __init__(self, model: Model, admission: Admission, max_wave_rows: int, cache_bytes: int | None = None) -> None:
        """At most four full waves of rows are in flight, or as many as fit into `cache_bytes`.

        Raises `InvalidInput` when that is not even one image.
        """
        self._model = model
        self._admission = admission
        self._stages = TextAndVae(model)
        self._policy = Balanced(max_unet_rows=max_wave_rows)
        self._waves = Waves(model.network, slots_within(model, ROWS_IN_FULL_WAVES * max_wave_rows, cache_bytes), self._policy)
        metrics.cache_bytes.set(self._waves.slots.bytes)
        self._queue = Queue(FairQueue(self._policy))
        self._inflight: dict[DenoisingTask, ImageTask] = {}
        self._cancelled: deque[ImageTask] = deque()  # by their clients, and not dropped yet
        self._aloft: InflightWave | None = None
        self._lead = Overlap()
        self._failed_waves = 0  # in a row
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish the current turn, fail what is left, stop. Blocks for a turn."""
        self._queue.close()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether orders will be worked on."""
        return self._thread.is_alive()

    def submit(self, specs: Sequence[ImageSpec], preview: Preview | None = None) -> list[Future[ImageResult]]:
        """Queue all of these orders or none. Raises `Overloaded`, and `NotReady` when the engine is stopping.

        All must be of one key, or all idle: those run while no client waits, and whoever submits them bounds them.
        `preview` is called in the engine's thread.
        """
        now, first = monotonic(), specs[0]
        tasks = [ImageTask(spec, now, macs_before(spec, self._model.macs), preview, journey=journey()) for spec in specs]
        for task in tasks:
            task.future.add_done_callback(partial(self._ended, task))
        macs = sum(task.remaining_macs for task in tasks)
        if not first.idle:
            self._admission.enter(first.key, macs, first.key_seconds)
        try:
            self._queue.put(tasks)
        except NotReady:
            if not first.idle:
                self._admission.done(first.key, macs)
            raise
        metrics.queue_rows.set(len(self._queue))
        return [task.future for task in tasks]

    def forecast(self, program: Program, unet_rows: int, images: int, tier: str) -> float:
        """Seconds until so many images of this program would be done if they came now. Any thread may ask."""
        clients = [task for task in list(self._inflight.values()) if not task.spec.idle]
        pace, each = self._admission.seconds_per_mac, self._stages.seconds_per_image
        alone = sum(self._policy.curve.seconds(step.need, unet_rows) for step in program.steps)
        macs = images * self._model.macs.of_program(program, unet_rows)
        return EngineLoad(self._queue.macs(), clients, pace, each).finish(tier, len(program.steps), macs, images, alone)

    def turn(self) -> None:
        """Drop what nobody wants, take in what fits, launch a wave behind the one at work, and tell what came of that one."""
        start = monotonic()
        self._drop_cancelled()
        self._take_in()
        launched = self._launch()
        if launched:
            self._lead.formed(start, at_work=self._aloft is not None)
        self._land()
        self._aloft = launched
        if launched and launched.end.done():  # a CPU's
            self._land()
        metrics.queue_rows.set(len(self._queue))
        metrics.inflight_rows.set(len(self._inflight))
        metrics.queue_seconds.set(self._admission.seconds)
        if self._aloft:
            wave, images = self._aloft.wave, len(self._aloft.images)
            seconds = self._policy.curve.seconds(wave.need, wave.unet_rows) + self._stages.decoding(images)
            self._lead.doze(self._aloft.end, seconds)

    def _run(self) -> None:
        while self._has_work():
            try:
                self.turn()
            except Exception as error:  # a lost device or a bug: better to fail what is in flight than to fail for ever
                log.exception("the engine's turn failed", extra=_whose(self._inflight.values()))
                with suppress(Exception):  # what was launched before may have come to its end
                    self._land()
                self._fail([*self._inflight.values()], error, "computing")
                self._give_up_after(FAILED_WAVES)
        with suppress(Exception):
            self._land()
        stopping = NotReady("the server is stopping")
        self._fail([*self._inflight.values(), *self._queue.empty()], stopping, "")

    def _has_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        if not self._inflight and not self._aloft:
            self._queue.wait()
        return self._queue.is_open

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            task = self._cancelled.popleft()
            if not task.left:
                self._queue.remove(task)
                self._leave(task, "cancelled")

    def _ended(self, task: ImageTask, future: Future[ImageResult]) -> None:
        """In whatever thread ended it."""
        if future.cancelled():
            self._cancelled.append(task)

    def _take_in(self) -> None:
        """Clients before idle work, which gives up its place as soon as one comes, and begins anew later."""
        idle = [task for row, task in self._inflight.items() if task.spec.idle and row.slots]
        room = self._waves.slots.free + sum(task.unet_rows for task in idle)
        tasks = self._queue.take(room, BATCH)
        if sum(task.unet_rows for task in tasks) > self._waves.slots.free:
            self._send_back(idle)
        if not tasks and not self._inflight:
            tasks = self._queue.take_idle()
        self._each(tasks, self._encode, "encoding")
        if tasks and all(task.left for task in tasks):
            self._model.network.fence().done()  # raises when the device is lost: then it is not the prompts

    def _send_back(self, tasks: Sequence[ImageTask]) -> None:
        for task in tasks:
            assert task.row is not None, "it was in flight"
            self._waves.cancel(task.row)
            del self._inflight[task.row]
            task.restart()
        self._queue.put_back(tasks)

    def _encode(self, tasks: list[ImageTask]) -> None:
        start, rows, now = monotonic(), self._stages.encode(tasks), monotonic()
        try:
            for row in rows:
                self._waves.add(row)
        except Exception:  # of the device; a retry must find no half of a batch
            for row in rows:
                self._waves.cancel(row)
            raise
        for task, row in zip(tasks, rows, strict=True):
            task.row, task.taken = row, start
            metrics.stage_seconds.labels("queue").observe(start - task.queued)
            task.journey.add("queue", task.queued, start)
            task.journey.add("encode", start, now, images=len(rows))
            self._inflight[row] = task

    def _launch(self) -> InflightWave | None:
        """Ask the device for one wave, and for the pictures that it finishes."""
        wave = self._waves.launch(monotonic())
        if wave is None:
            return None
        self._fail_rows(wave)
        if not wave.rows:
            self._give_up_after(FAILED_WAVES)
            return None
        tasks = {row: self._inflight[row] for row in wave.rows}
        spent, images = accounting.spend(wave.need, tasks.values()), dict[ImageTask, Tensor]()
        for task, macs in zip(tasks.values(), spent, strict=True):
            self._settle(task, macs)
        done = [task for task in tasks.values() if not task.remaining_macs]
        for start in range(0, len(done), BATCH):
            self._each(done[start : start + BATCH], partial(self._decode, images), "decoding")
        decoded = self._model.network.fence()
        previews = self._previews([task for task in tasks.values() if task.position in task.preview_at])
        return InflightWave(wave, tasks, sum(spent), images, previews, decoded, self._model.network.fence())

    def _land(self) -> None:
        """Wait for the wave at work, learn from it, and hand out what it finished."""
        if self._aloft is None:
            self._lead.begins()
            return
        launched, self._aloft = self._aloft, None
        wave = self._waves.land(launched.wave)
        launched.end.wait()
        self._lead.begins()
        self._failed_waves = 0
        now, decoding = monotonic(), launched.decoded.since(wave.end)
        denoised = now - launched.end.since(wave.end)
        self._learn(launched)
        self._fail_rows(wave)
        here, begun = launched.still_here(), denoised - wave.seconds
        for task in here:
            task.denoised = denoised
            task.journey.add(wave.need.kind, begun, denoised, branch=wave.need.branch, unet_rows=wave.unet_rows)
        if launched.images:
            self._stages.took("decode", decoding, len(launched.images))
        for task in here:
            if task in launched.images:
                task.journey.add("decode", denoised, denoised + decoding, images=len(launched.images))
                self._hand_out(task, launched.images[task])
            elif task in launched.previews:
                self._show(task, *launched.previews[task])

    def _learn(self, launched: InflightWave) -> None:
        wave, kind, seconds = launched.wave, launched.wave.need.kind, launched.wave.seconds
        metrics.wave_rows.labels(kind).observe(wave.unet_rows)
        metrics.wave_seconds.labels(kind).observe(seconds)
        self._admission.measured(launched.macs, seconds)
        if not wave.failed:  # else it was several calls
            self._policy.curve.observe(wave.need, wave.unet_rows, seconds)

    def _fail_rows(self, wave: Wave) -> None:
        for row in wave.failed:
            assert row.error is not None, "a failed row has its error"
            task = self._inflight.get(row)
            if task:  # else it left before its wave had landed
                log.error("denoising failed", exc_info=row.error, extra=_whose([task]))
                self._fail([task], row.error, "denoising")

    def _give_up_after(self, limit: int) -> None:
        """Stop the thread when nothing works any more, so that /livez asks for a restart: a lost device does not come back."""
        self._failed_waves += 1
        if self._failed_waves >= limit:
            log.error("stopping after %d failed waves in a row", self._failed_waves)
            self._queue.close()

    def _decode(self, images: dict[ImageTask, Tensor], tasks: list[ImageTask]) -> None:
        images.update(zip(tasks, self._stages.decode([task.latent for task in tasks]), strict=True))

    def _previews(self, tasks: list[ImageTask]) -> dict[ImageTask, tuple[int, Tensor]]:
        """The clean latents that their last step predicts, decoded. That one fails costs nobody an image."""
        if not tasks:
            return {}
        try:
            pixels = self._stages.decode([self._waves.slots.clean(task.row.slots[0]) for task in tasks if task.row])
        except Exception:
            log.exception("a preview failed", extra=_whose(tasks))
            return {}
        return {task: (task.preview_at[task.position], each) for task, each in zip(tasks, pixels, strict=True)}

    def _show(self, task: ImageTask, preview: int, pixels: Tensor) -> None:
        try:
            if task.preview:
                task.preview(task.spec, preview, pixels)
        except Exception:
            log.exception("a preview failed", extra=_whose([task]))

    def _hand_out(self, task: ImageTask, pixels: Tensor) -> None:
        spent = task.denoised - task.taken
        metrics.stage_seconds.labels("denoise").observe(spent)
        accounting.balance(task)
        self._leave(task, "ok")
        with suppress(InvalidStateError):  # cancelled this very moment
            pixels = pixels.clone()  # a batch's memory is not to live as long as one of its images
            task.future.set_result(ImageResult(pixels, task.macs, task.steps, task.taken - task.queued, spent))

    def _each(self, tasks: list[ImageTask], work: Callable[[list[ImageTask]], None], stage: str) -> None:
        """Work on a batch; if that fails, on each ticket alone, so that only the culprits fail."""
        if not tasks:
            return
        try:
            work(tasks)
            return
        except Exception as error:
            if len(tasks) == 1:
                log.exception("%s failed", stage, extra=_whose(tasks))
                self._fail(tasks, error, stage)
                return
        for task in tasks:
            self._each([task], work, stage)

    def _fail(self, tasks: Sequence[ImageTask], error: Exception, stage: str) -> None:
        if not isinstance(error, FlexiError):
            error = GenerationFailed(
                f"{stage} this image failed" + (f": {error}" if isinstance(error, FloatingPointError) else "")
            )
        for task in tasks:
            self._leave(task, "failed")
            with suppress(InvalidStateError):
                task.future.set_exception(error)

    def _leave(self, task: ImageTask, outcome: str) -> None:
        """The one way out: the row's memory is free, no work is owed, and the image is counted."""
        task.left = True
        if task.row is not None:
            self._waves.cancel(task.row)
            self._inflight.pop(task.row, None)
        self._settle(task, task.macs_before[-1] - task.settled)
        metrics.images_total.labels(task.spec.tier, task.spec.arm, outcome).inc()
        task.journey.end(monotonic(), tier=task.spec.tier, outcome=outcome)

    def _settle(self, task: ImageTask, macs: int) -> None:
        task.settled += macs
        if not task.spec.idle:
            self._admission.done(task.spec.key, macs)


def _whose(tasks: Iterable[ImageTask]) -> dict[str, dict[str, str]]:
    """For a log line: the requests that it is about."""
    return {"fields": {"request_id": " ".join(dict.fromkeys(task.spec.request_id for task in tasks))}}
