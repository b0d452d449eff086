"""Between asyncio and the engine: one thread owns the models and their waves, everybody else submits image specs and waits.

Texts are encoded and images decoded by the same thread. A second executor would not make them faster (they want the same cores
or the same device), would make two threads share one model, and would need every image passed between them. On a CPU the price
is that a wave waits for them. A GPU works behind the host: a wave is launched while the one before it is still at work, so that
the device never waits for Python, and formed as late as that allows, so that newcomers find a place in it; and what a wave
finished is decoded in a lane of the device's own, beside the waves that follow. All models of a server have one thread
(`DeviceThread`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future

from typing_extensions import override

from engine.buckets import EXACT, dense
from engine.curve import CostCurve
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
from server.batching.device_thread import AtWork, DeviceThread
from server.batching.fair_queue import FairQueue
from server.batching.forecast import EngineLoad
from server.batching.graph_captures import GraphCaptures, capture
from server.batching.image_task import ImageResult, ImageSpec, ImageTask, Preview, Progress
from server.batching.images_in_flight import ImagesInFlight
from server.batching.inflight_wave import InflightWave
from server.batching.intake import Intake, no_loras
from server.batching.member import Member
from server.batching.memory import slots_within
from server.batching.newcomers import Newcomers
from server.batching.shares import MARGIN, TierShares
from server.batching.text_and_vae import TextAndVae
from server.batching.warm_up import warming
from server.errors import NotReady
from server.loras.adapter_set import AdapterSet
from server.telemetry import metrics, served

FULL_WAVES = 4  # in flight at most, in UNet rows: images on different steps need company to fill one, more only make all later


class ModelEngine(Member):
    """One model in the engine's thread, and how others reach it: `submit` image specs, and get a future for each result.

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
        chunks: int = 1,
        device_thread: DeviceThread | None = None,
        curve: CostCurve | None = None,
        adapted: Callable[[AdapterSet], Model] = no_loras,
    ) -> None:
        """At most four full waves of UNet rows are in flight, or as many as fit into `cache_bytes`. With `graphs` waves come in
        few sizes, and are one launch each. `others`: sizes of images beside the model's own. chunks: the most of a context.

        `device_thread`: that of other models; without it, the model has one of its own. `curve`: what its waves cost when it
        was here before. adapted: the model with LoRAs, in memory as long as an image with them is wanted.

        Raises `InvalidInput` when that is not even one image.
        """
        self._model = model
        self._counted_as = served.model()
        self._admission = admission
        self._text_and_vae = TextAndVae(model)
        slots = slots_within(model, FULL_WAVES * max_wave_rows, cache_bytes, others, chunks)
        max_wave_rows = min(max_wave_rows, max(map(slots.most, slots.sizes)))  # larger ones never come
        buckets = dense(max_wave_rows) if graphs else EXACT
        self._policy = Balanced(curve or CostCurve(buckets=buckets), max_wave_rows)
        self._waves = Waves[ImageTask](model.network, slots, self._policy, buckets, graphs)
        self._has_graphs, self._captures = graphs is not None, GraphCaptures(self._waves)
        metrics.cache_bytes.set(slots.bytes)
        self._device_thread = device_thread or DeviceThread(self)
        self._queue = FairQueue[ImageTask](TierShares(self._policy), self._device_thread.changed)
        self._images = ImagesInFlight(self._waves, admission)
        self._cancellations = Cancellations()
        self._newcomers = Newcomers(
            model,
            self._waves,
            self._queue,
            self._images,
            self._text_and_vae,
            self._cancellations,
            max_wave_rows,
            self._quiet_beside,
            self._idle_beside,
        )
        self._denoising = Denoising(
            self._waves,
            self._policy,
            model.macs_at,
            self._images,
            self._text_and_vae,
            admission,
            self._device_thread.failed_waves,
        )
        self._decodes = Decodes(model.network, self._text_and_vae, self._images)
        captures = self._captures if self._has_graphs else None
        self._intake = Intake(model, admission, self._waves.slots, self._queue, self._cancellations, captures, adapted)
        self._first: Sequence[Schedule] = ()  # that it warms up for

    def warm_up(self, schedules: Iterable[Schedule]) -> None:
        """Capture what these schedules need, and learn a first pace. Raises what the device raises."""
        self._first = list(schedules)
        for _ in self.warming():
            pass

    @override
    def warming(self) -> Generator[None]:
        if not self._first:
            return
        branches = {branch for schedule in self._first for branch in schedule.branches}
        for _ in capture(self._waves, branches):
            yield
        self._admission.measured(*(yield from warming(self._model, self._waves, branches)))
        self._decodes.warm_up(self._model, self._waves.slots.sizes)
        metrics.decoder_upcast.set(self._model.decoder.overflowed)

    def prepare(self, schedule: Schedule) -> None:
        """Before a schedule comes into force: capture what it needs and others did not. Blocks; any thread may call."""
        if not self._has_graphs:
            return
        captured = self._captures.want(schedule.branches)
        self._device_thread.wake()
        captured.result()

    def start(self, schedules: Iterable[Schedule] = ()) -> None:
        """Start the thread, or join that of other models, and return when the model is warm for these schedules; what was
        submitted before is worked on too.

        It warms up in the thread, because what cuDNN plans for is a thread's own. Raises what the device raises: a thread that
        was started has ended then.
        """
        self._first = list(schedules)
        self._device_thread.join(self).result()

    def leave(self) -> None:
        """Give the device and the weights' memory up, once nothing is in flight; nobody submits any more. Blocks as long."""
        self._device_thread.leave(self).result()
        with served.serving(self._counted_as):
            for gauge in (metrics.cache_bytes, metrics.source_cache_bytes, metrics.cuda_graphs, metrics.cuda_graph_bytes):
                gauge.set(0)
        self._model.drop_weights()

    def close(self) -> None:
        """Finish the thread's current step, and the decoding of what is denoised; fail what is left, stop. Blocks as long."""
        self._device_thread.close()

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be worked on."""
        return self._device_thread.alive

    @property
    def end(self) -> str:
        """Why the thread ended, once it has."""
        return self._device_thread.end

    def submit(
        self, specs: Sequence[ImageSpec], preview: Preview | None = None, progress: Progress | None = None
    ) -> list[Future[ImageResult]]:
        """Queue all of these images or none: see `Intake.submit`, which raises."""
        return self._intake.submit(specs, preview, progress)

    def forecast(
        self, program: Program, unet_rows: int, images: int, tier: str, size: ImageSize | None = None, chunks: int = 1
    ) -> float:
        """Seconds until so many images of this program, size and length of context would be done if they came now, before
        background work.

        Any thread may ask.
        """
        clients = [task for task in self._images if not task.yields]
        beside = self._text_and_vae.seconds_per_image(size, edited=program.signal > 0)
        load = EngineLoad(self._queue.macs(), clients, self._admission.seconds_per_mac, beside)
        alone = sum(self._policy.curve.seconds(step.need.at(size, chunks), unet_rows) for step in program.steps)
        macs = images * self._model.macs_at(size, chunks).of_program(program, unet_rows)
        return load.finish(tier, len(program.steps), macs, images, alone)

    def step(self, at_work: AtWork | None) -> AtWork | None:
        """A step of the thread. Raises `DeviceLost` and its like."""
        return self._device_thread.step(at_work)

    @property
    @override
    def counted_as(self) -> str:
        return self._counted_as

    @property
    def model(self) -> Model:
        """As it is in memory."""
        return self._model

    @property
    def curve(self) -> CostCurve:
        """What its waves cost, as far as that was learnt."""
        return self._policy.curve

    @property
    def slot_bytes(self) -> int:
        """Memory of its slots."""
        return self._waves.slots.bytes

    @property
    @override
    def queue(self) -> FairQueue[ImageTask]:
        return self._queue

    @property
    @override
    def tasks(self) -> Collection[ImageTask]:
        return self._waves.tasks

    @property
    @override
    def images(self) -> Collection[ImageTask]:
        return list(self._images)

    @property
    @override
    def capturing(self) -> bool:
        return self._captures.wanted

    @property
    @override
    def decoding(self) -> bool:
        return bool(self._decodes)

    @override
    def hurries(self, task: ImageTask, now: float) -> bool:
        return self._policy.hurries(task, now, MARGIN)

    @override
    def capture(self) -> None:
        self._captures.step()

    @override
    def admit(self) -> None:
        self._cancellations.drop(self._queue, self._images)
        self._newcomers.admit()

    @override
    def launch(self) -> InflightWave | None:
        return self._denoising.launch()

    @override
    def predicted_seconds(self, inflight: InflightWave) -> float:
        return self._denoising.predicted_seconds(inflight)

    @override
    def land(self, inflight: InflightWave) -> None:
        self._decodes.add(self._denoising.land(inflight), inflight.end)

    @override
    def advance(self) -> None:
        self._decodes.advance()

    @override
    def finish(self) -> None:
        self._decodes.finish()

    @override
    def export(self) -> None:
        metrics.queue_images.set(len(self._queue))
        metrics.inflight_images.set(len(self._images))
        metrics.queue_seconds.set(self._admission.seconds)
        metrics.background_seconds.set(self._admission.background_seconds)

    @override
    def fail(self, error: Exception) -> None:
        self._images.fail(self._images, error, "computing")

    @override
    def retire(self, reason: str) -> None:
        self._queue.close(reason)
        self._captures.close()
        self._images.fail([*self._images, *self._queue.empty()], NotReady(reason), "")

    def _quiet_beside(self) -> bool:
        return self._device_thread.quiet_beside(self)

    def _idle_beside(self) -> bool:
        return self._device_thread.idle_beside(self)
