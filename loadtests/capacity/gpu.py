"""One server on one GPU, without either: the policy, the queue, the shares and the admission are the server's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from engine.buckets import EXACT, Buckets, dense
from engine.compiling import DECODED
from engine.curve import CostCurve
from engine.policy import Balanced
from engine.program_step import Need
from loadtests.capacity.images import TierPlan, VirtualImage
from loadtests.card import FULL, Card, numbered
from server.batching.admission import Admission
from server.batching.decodes import AT_WORK
from server.batching.fair_queue import FairQueue
from server.batching.images_in_flight import BATCH
from server.batching.model_engine import FULL_WAVES
from server.batching.overlap import DECAY
from server.batching.shares import TierShares

INSTANT = 1e-12  # seconds: what rounding leaves of a call
WARM_UP = 3  # waves of each size that the curve has seen before the first image


@dataclass(frozen=True)
class ServerSettings:
    """As the server's settings of these names."""

    max_wave_rows: int = 16
    max_queue_seconds: float = 30.0
    graphs: bool = True  # waves come in few sizes


@dataclass
class Work:
    """What the GPU has done. seconds: while it was at work; waves and rows: of the UNet."""

    seconds: float = 0.0
    waves: int = 0
    rows: int = 0


@dataclass
class VirtualCall:
    """What the device is asked for, of which images, and the seconds of the whole device that it still wants."""

    images: list[VirtualImage]
    left: float


@dataclass
class VirtualWave(VirtualCall):
    """A UNet call. finished: its images that it takes to their end."""

    need: Need
    rows: int
    macs: int
    finished: list[VirtualImage]
    began: float = 0.0


class VirtualGpu:
    """Waves in one lane and the decoder in another; while both work, each has half of the device, as on the simulated card.

    The next wave is formed while one is at work, as long before its end as the host was late lately (`batching.overlap`): it is
    busy while it queues a decoding. Text encoders, image files and all else take no time here.
    """

    def __init__(
        self, card: Card, plans: Iterable[TierPlan], settings: ServerSettings, done: Callable[[VirtualImage, float], None]
    ) -> None:
        """done: called with each image and the time at which its pixels are there."""
        self._card, self._settings, self._done, self.now = card, settings, done, 0.0
        self._buckets: Buckets = dense(settings.max_wave_rows) if settings.graphs else EXACT
        self._policy = Balanced(CostCurve(buckets=self._buckets), settings.max_wave_rows)
        self.admission = Admission(settings.max_queue_seconds)
        self._queue = FairQueue[VirtualImage](TierShares(self._policy), clock=lambda: self.now)
        self._inside: list[VirtualImage] = []
        self._free = FULL_WAVES * settings.max_wave_rows
        self._wave: VirtualWave | None = None
        self._next_wave: VirtualWave | None = None  # it is queued behind that one
        self._decodes, self._undecoded = deque[VirtualCall](), deque[VirtualImage]()
        self._due = 0.0  # the next wave is to be formed
        self._form_at = inf  # it will be, because the host is busy until then
        self._host_free = 0.0
        self._lead = 0.0
        self.work = Work()
        self._calls = _calls(card, plans)
        self._learn(plans)

    @property
    def queue_seconds(self) -> float:
        """The predicted seconds of what it has accepted, which the server says in `X-Flexi-Queue-Seconds`."""
        return self.admission.seconds

    def submit(self, image: VirtualImage) -> None:
        """Queue an image now. Raises `Overloaded`."""
        self.admission.enter("anybody", image.remaining_macs)
        self._queue.put([image])
        if self._wave is None and self._form_at == inf:
            self._form_by(self.now)

    def next_end(self) -> float:
        """When something happens next; infinite where nothing is at work."""
        working = self._working
        ends = (self.now + call.left * len(working) for call in working)
        return min(self._form_at, *ends, inf)

    def advance(self, now: float) -> None:
        """Go on to a time that is no later than `next_end`."""
        working = self._working
        for call in working:
            call.left -= (now - self.now) / len(working)
        self.work.seconds += now - self.now if working else 0.0
        self.now = now
        if self._wave and self._wave.left <= INSTANT:
            self._land(self._wave)
        if self._decodes and self._decodes[0].left <= INSTANT:
            for image in self._decodes.popleft().images:
                self._done(image, now)
        if now >= self._form_at:
            self._form()
        self._decode_next()

    @property
    def _working(self) -> list[VirtualCall]:
        """The calls that share the device now: the wave, and the first decoding."""
        wave: list[VirtualCall] = [self._wave] if self._wave else []
        return [*wave, self._decodes[0]] if self._decodes else wave

    def look(self) -> None:
        """Called before each wave is formed, for servers that do more with the images inside."""

    def _form_by(self, due: float) -> None:
        """Form the next wave then, or as soon after as the host can."""
        self._due = due
        self._form_at = max(due, self._host_free, self.now)
        if self._form_at == self.now:
            self._form()

    def _form(self) -> None:
        """Let in whoever fits, and have the next wave, if there is anything to do, begin as soon as the device can."""
        self._form_at = inf
        if self._wave:
            self._lead = max(self.now - self._due, DECAY * self._lead)
        self._inside += self._queue.take(self._fits, BATCH)
        if not self._inside:
            return
        self.look()
        images = list(self._policy.choose(self._inside, self.now))
        chosen, rows = set(map(id, images)), sum(image.unet_rows for image in images)
        waiting = [image for image in self._inside if id(image) not in chosen]
        for image in waiting:
            image.waits += 1
        need, macs = images[0].need, sum(image.next_macs for image in images)
        self.admission.done("anybody", macs)
        for image in images:
            image.waits = 0
            image.position += 1
        finished = [image for image in images if image.done]
        self._free += sum(image.unet_rows for image in finished)
        self._inside = waiting + [image for image in images if not image.done]
        self.work.waves += 1
        self.work.rows += rows
        wave = VirtualWave(images, self._seconds(need, rows), need, rows, macs, finished)
        if self._wave:
            self._next_wave = wave
        else:
            self._begin(wave)

    def _begin(self, wave: VirtualWave) -> None:
        self._wave, wave.began = wave, self.now
        self._form_by(self.now + max(self._policy.curve.seconds(wave.need, wave.rows) - self._lead, 0.0))

    def _land(self, wave: VirtualWave) -> None:
        seconds = self.now - wave.began
        self.admission.measured(wave.macs, seconds)
        self._policy.curve.observe(wave.need, wave.rows, seconds)
        self._undecoded.extend(wave.finished)
        self._wave = None
        if self._next_wave:
            wave, self._next_wave = self._next_wave, None
            self._begin(wave)
        elif self._form_at == inf:
            self._form_by(self.now)

    def _fits(self, image: VirtualImage) -> bool:
        if self._free < image.unet_rows:
            return False
        self._free -= image.unet_rows
        return True

    def _decode_next(self) -> None:
        while self._undecoded and len(self._decodes) < AT_WORK:
            size = next(size for size in DECODED if size <= len(self._undecoded))
            images = [self._undecoded.popleft() for _ in range(size)]
            self._decodes.append(VirtualCall(images, self._card.decoding.device_seconds(size)))
            self._host_free = max(self.now, self._host_free) + self._card.decoding.host_seconds
        if self._form_at < inf:
            self._form_at = max(self._form_at, self._host_free)

    def _seconds(self, need: Need, rows: int) -> float:
        return self._calls[need](self._buckets.padded(rows))

    def _learn(self, plans: Iterable[TierPlan]) -> None:
        """What the warm-up of a server teaches: waves of every size, and with them the pace."""
        sizes = self._buckets.sizes or range(2, self._settings.max_wave_rows + 1, 2)
        for need in self._calls:
            for rows in [*sizes] * WARM_UP:
                self._policy.curve.observe(need, rows, self._seconds(need, rows))
        most = self._settings.max_wave_rows
        for plan in plans:
            seconds = sum(self._seconds(need, most) for need in plan.needs) * plan.unet_rows / most
            self.admission.measured(plan.macs_before[-1], seconds)


def _calls(card: Card, plans: Iterable[TierPlan]) -> Mapping[Need, Callable[[int], float]]:
    """Seconds of a call by its rows, which are asked for again and again."""

    def remembered(need: Need) -> Callable[[int], float]:
        cost, known = card.call(numbered(need.branch) if need.kind == "partial" else FULL, 1.0), dict[int, float]()

        def seconds(rows: int) -> float:
            if rows not in known:
                known[rows] = cost.seconds(rows)
            return known[rows]

        return seconds

    needs: Collection[Need] = {need for plan in plans for need in plan.needs}
    return {need: remembered(need) for need in needs}
