"""Between asyncio and the engine: one thread owns the model and the waves, everybody else hands in orders and waits.

Text encoding and VAE decoding run in the same thread, between two waves and a few at a time. A second executor would not
make them faster (they want the same cores or the same device), would make two threads share one model, and would need a
hand-over for every image; the price is that a wave waits while at most `BATCH` images are decoded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from time import monotonic

import torch

from engine.condition import Condition
from engine.door import Door
from engine.models import Model
from engine.policy import Balanced
from engine.slots import Slots, slot_bytes
from engine.waves import Row, Wave, Waves
from registry.errors import FlexiError, InvalidInput
from server import metrics
from server.admission import Admission
from server.errors import GenerationFailed, NotReady
from server.order import Order, Picture, Ticket

log = logging.getLogger(__name__)

FAILED_WAVES = 5  # in a row, and the engine counts as lost
BATCH = 8  # texts encoded, or latents decoded, at once
WAVES_IN_FLIGHT = 2  # in full waves: rows on different steps need company to fill a wave, and more only makes all later


class Dispatcher:
    """The engine's thread and its two doors: `submit` for orders, a future for each picture.

    Whoever cancels a future frees its row at the engine's next turn. A row that fails takes nobody with it, except that
    an exception in a wave fails the rows of that wave; the thread lives on.
    """

    def __init__(self, model: Model, admission: Admission, max_wave_rows: int, cache_bytes: int | None = None) -> None:
        """At most two full waves of rows are in flight, or as many as fit into `cache_bytes`.

        Raises `InvalidInput` when that is not even one image.
        """
        self._model = model
        self._admission = admission
        self._policy = Balanced(max_unet_rows=max_wave_rows)
        self._door = Door(self._policy)
        self._waves = Waves(model.anatomy, _slots(model, WAVES_IN_FLIGHT * max_wave_rows, cache_bytes), self._policy)
        metrics.cache_bytes.set(self._waves.slots.bytes)
        self._waiting: deque[Ticket] = deque()
        self._inflight: dict[Row, Ticket] = {}
        self._wake = threading.Condition()  # guards _waiting and _open
        self._open = True
        self._failed_waves = 0  # in a row
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish the current turn, fail what is left, stop. Blocks for a turn."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether orders will be worked on."""
        return self._thread.is_alive()

    def submit(self, orders: Sequence[Order]) -> list[Future[Picture]]:
        """Queue all of these orders or none. Raises `Overloaded`, and `NotReady` when the engine is stopping."""
        now = monotonic()
        tickets = [Ticket(order, queued=now) for order in orders]
        with self._wake:
            if not self._open:
                raise NotReady("the server is stopping")
            self._admission.admit(len(self._waiting), len(tickets), self._backlog)
            self._waiting.extend(tickets)
            metrics.queue_rows.set(len(self._waiting))
            self._wake.notify()
        return [ticket.future for ticket in tickets]

    async def render(self, orders: Sequence[Order]) -> list[Picture]:
        """Submit and wait without blocking the event loop. One failure, or cancellation, gives up all of the orders."""
        futures = [asyncio.wrap_future(future) for future in self.submit(orders)]
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()  # reaches the thread's own future; too late for a finished one, which is right

    def turn(self) -> None:
        """Drop what nobody wants, take in what fits, run one wave, hand out what is done."""
        self._drop_cancelled()
        self._take_in()
        done = self._wave()
        for start in range(0, len(done), BATCH):
            self._each(done[start : start + BATCH], self._hand_out, "decoding")
        metrics.queue_rows.set(len(self._waiting))
        metrics.inflight_rows.set(len(self._inflight))

    def _run(self) -> None:
        while self._has_work():
            try:
                self.turn()
            except Exception as error:  # a lost device or a bug: better to fail what is in flight than to fail for ever
                log.exception("the engine's turn failed")
                self._fail([*self._inflight.values()], error, "scheduling")
                self._give_up_after(FAILED_WAVES)
        stopping = NotReady("the server is stopping")
        self._fail([*self._inflight.values(), *self._waiting], stopping, "")

    def _has_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._inflight or not self._open)
            return self._open

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = [ticket for ticket in (*self._waiting, *self._inflight.values()) if ticket.future.cancelled()]
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in gone)
        for ticket in gone:
            self._leave(ticket, "cancelled")

    def _take_in(self) -> None:
        room, tickets = self._waves.slots.free, list[Ticket]()
        with self._wake:
            while self._waiting and len(tickets) < BATCH:
                ticket = self._door.next(self._waiting, monotonic())
                if ticket.order.unet_rows > room:
                    break
                self._waiting.remove(ticket)
                self._door.charge(ticket.tier, ticket.remaining_macs(self._model.macs))
                tickets.append(ticket)
                room -= ticket.order.unet_rows
        self._each(tickets, self._encode, "encoding")

    def _encode(self, tickets: list[Ticket]) -> None:
        start, orders = monotonic(), [ticket.order for ticket in tickets]
        wanted = _each_once([order.prompt for order in orders], self._model.encode)
        unwanted = _each_once([order.negative for order in orders if order.unet_rows == 2], self._model.negative)
        rows = [
            Row(
                order.program,
                self._model.noise(order.seed),
                wanted[order.prompt],
                order.guidance,
                unwanted[order.negative] if order.unet_rows == 2 else None,
                order.deadline,
            )
            for order in orders
        ]
        for ticket, row in zip(tickets, rows, strict=True):  # nothing below can fail: a retry must find no half of a batch
            ticket.row, ticket.taken = row, start
            metrics.stage_seconds.labels("queue").observe(start - ticket.queued)
            self._inflight[row] = ticket
            self._waves.add(row)
        metrics.stage_seconds.labels("encode").observe(monotonic() - start)

    def _wave(self) -> list[Ticket]:
        """Run one wave; the tickets whose denoising it ended."""
        start = monotonic()
        wave = self._waves.tick(start)
        if wave is None:
            return []
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # else the time measured is that of queueing the kernels
        for row in wave.failed:
            assert row.error is not None, "a failed row has its error"
            log.error("denoising failed", exc_info=row.error)
            self._fail([self._inflight[row]], row.error, "denoising")
        if not wave.rows:
            self._give_up_after(FAILED_WAVES)
            return []
        self._failed_waves = 0
        self._account(wave, monotonic() - start)
        return [self._inflight[row] for row in wave.rows if row.done]

    def _give_up_after(self, limit: int) -> None:
        """Stop the thread when nothing works any more, so that /livez asks for a restart: a lost device does not come back."""
        self._failed_waves += 1
        if self._failed_waves >= limit:
            log.error("stopping after %d failed waves in a row", self._failed_waves)
            with self._wake:
                self._open = False

    def _account(self, wave: Wave, seconds: float) -> None:
        kind, total, now = wave.need.kind, 0, monotonic()
        for ticket in (self._inflight[row] for row in wave.rows):
            macs, null = ticket.ran(wave.need, self._model.macs)
            ticket.denoised, total = now, total + macs
            metrics.macs_total.labels(ticket.order.tier, ticket.order.arm, kind).inc(macs)
            metrics.steps_total.labels(kind, ticket.order.tier).inc()
            metrics.steps_total.labels("null", ticket.order.tier).inc(null)
        metrics.wave_rows.labels(kind).observe(wave.unet_rows)
        metrics.wave_seconds.labels(kind).observe(seconds)
        self._admission.measured(total, seconds)
        if not wave.failed:  # else it was several calls
            self._policy.curve.observe(wave.need, wave.unet_rows, seconds)

    def _hand_out(self, tickets: list[Ticket]) -> None:
        start = monotonic()
        latents = torch.stack([ticket.latent for ticket in tickets])
        images = self._model.decode(latents)
        metrics.stage_seconds.labels("decode").observe(monotonic() - start)
        for ticket, pixels in zip(tickets, images, strict=True):
            spent = ticket.denoised - ticket.taken
            metrics.stage_seconds.labels("denoise").observe(spent)
            metrics.image_macs.labels(ticket.order.tier).observe(ticket.macs)
            self._leave(ticket, "ok")
            with suppress(InvalidStateError):  # cancelled this very moment
                ticket.future.set_result(Picture(pixels, ticket.macs, ticket.steps, ticket.taken - ticket.queued, spent))

    def _each(self, tickets: list[Ticket], work: Callable[[list[Ticket]], None], stage: str) -> None:
        """Work on a batch; if that fails, on each ticket alone, so that only the culprits fail."""
        if not tickets:
            return
        try:
            work(tickets)
            return
        except Exception as error:
            if len(tickets) == 1:
                log.exception("%s failed", stage)
                self._fail(tickets, error, stage)
                return
        for ticket in tickets:
            self._each([ticket], work, stage)

    def _fail(self, tickets: Sequence[Ticket], error: Exception, stage: str) -> None:
        if not isinstance(error, FlexiError):
            error = GenerationFailed(
                f"{stage} this image failed" + (f": {error}" if isinstance(error, FloatingPointError) else "")
            )
        for ticket in tickets:
            self._leave(ticket, "failed")
            with suppress(InvalidStateError):
                ticket.future.set_exception(error)

    def _leave(self, ticket: Ticket, outcome: str) -> None:
        """The one way out: the row's memory is free and the image is counted."""
        if ticket.row is not None:
            self._waves.cancel(ticket.row)
            self._inflight.pop(ticket.row, None)
        metrics.images_total.labels(ticket.order.tier, ticket.order.arm, outcome).inc()

    def _backlog(self) -> int:
        """MACs accepted and not run yet. Called in the thread of `submit`: hence the copies, each made in one go."""
        tickets = [*list(self._waiting), *list(self._inflight.values())]
        return sum(ticket.remaining_macs(self._model.macs) for ticket in tickets)


def _slots(model: Model, wanted: int, cache_bytes: int | None) -> Slots:
    each = max(slot_bytes(model.latent_shape, model.macs.features, model.dtype).values())
    capacity = wanted if cache_bytes is None else min(wanted, cache_bytes // each)
    if capacity < 2:
        message = f"cache_mib: an image with guidance needs {2 * each / 2**20:.1f} MiB, got {cache_bytes or 0} bytes"
        raise InvalidInput(message, param="cache_mib")
    log.info("%d UNet rows fit in flight, %.1f MiB each", capacity, each / 2**20)
    return model.slots(capacity)


def _each_once(prompts: Sequence[str], encode: Callable[[Sequence[str]], Condition]) -> dict[str, Condition]:
    """The condition of each prompt, one row each; equal prompts are encoded once."""
    different = list(dict.fromkeys(prompts))
    if not different:
        return {}
    encoded = encode(different)
    return {prompt: encoded[i : i + 1] for i, prompt in enumerate(different)}
