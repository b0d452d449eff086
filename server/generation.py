"""One generate request from its plan to its answer, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, Protocol

from torch import Tensor

from registry.errors import FlexiError, Overloaded
from server import VERSION, metrics, tracing
from server.api import GenerateRequest, GenerateResponse, Steps
from server.errors import Cancelled, ClientGone, DeadlineExceeded, QuotaExceeded
from server.keys import Key
from server.order import Order, Picture, Preview
from server.pictures import png
from server.plan import Plan, Planner
from server.quota import Quotas
from server.running import Running, gather, while_wanted

OUTCOMES: dict[type[FlexiError], str] = {
    Cancelled: "cancelled",
    ClientGone: "cancelled",
    DeadlineExceeded: "deadline",
    Overloaded: "rejected",
    QuotaExceeded: "rejected",
}


Event = tuple[int, int, Tensor] | tuple[int, Future[Picture]]  # an image's preview, or its end


class Renderer(Protocol):
    """What this needs of the dispatcher."""

    def submit(self, orders: Sequence[Order], preview: Preview | None = None) -> list[Future[Picture]]:
        """A future for each order."""


@dataclass(frozen=True)
class Partial:
    """Preview `index` of image `image`, both 0-based, as a PNG in base64."""

    image: int
    index: int
    png: str


@dataclass(frozen=True)
class Finished:
    """Image `image`, 0-based, as a PNG in base64, and what it took."""

    image: int
    png: str
    picture: Picture


class Ended(Protocol):
    """Somebody who wants to know what became of requests."""

    def ended(self, plan: Plan, outcome: str, seconds: float, pictures: Mapping[int, Picture]) -> None:
        """Told at the end of each request; `outcome` is "ok" or the code of the error.

        `pictures` are those that were done, by their place among the plan's orders.
        """


class Generation:
    """Plan, pay, queue, wait, answer, tell."""

    def __init__(
        self, planner: Planner, renderer: Renderer, quotas: Quotas, observers: Sequence[Ended] = (), commit: str = ""
    ) -> None:
        """`commit`: of this build; it is in every PNG, where it is known."""
        self.planner = planner
        self.running = Running()
        self._renderer = renderer
        self._quotas = quotas
        self._observers = observers
        self._software = f"flexiffusion-serve {VERSION}" + (f" ({commit})" if commit else "")

    async def answer(
        self, request: GenerateRequest, request_id: str, key: Key, gone: Coroutine[Any, Any, None]
    ) -> GenerateResponse:
        """Work until done, `gone` ends (the client left), somebody cancels, or time is over. Raises members of `FlexiError`."""
        try:
            plan = await self.planner.plan(request, request_id, key)
        except FlexiError:
            gone.close()
            raise
        with self._underway(plan) as (stop, pictures):
            ends = [(gone, ClientGone("the client closed the connection")), (stop.wait(), CANCELLED)]
            return await while_wanted(self._make(plan, pictures), ends, plan.limit)

    async def stream(self, plan: Plan, previews: int) -> AsyncGenerator[Partial | Finished]:
        """Previews of each image as they come, and each image as soon as it is done. Raises members of `FlexiError`.

        Who stops listening closes the iterator, and the rows are given up.
        """
        orders = [replace(order, previews=previews) for order in plan.orders]
        loop, until = asyncio.get_running_loop(), monotonic() + plan.limit
        events = asyncio.Queue[Event]()

        def tell(event: Event) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(events.put_nowait, event)

        with self._underway(plan) as (stop, pictures):
            futures = self._submit(plan, orders, lambda order, i, pixels: tell((order.seed - plan.seed, i, pixels)))
            for image, future in enumerate(futures):
                future.add_done_callback(partial(_done, tell, image))
            left = set(range(len(futures)))
            try:
                while left:
                    ends = [(stop.wait(), CANCELLED)]
                    event = await while_wanted(events.get(), ends, until - monotonic(), plan.limit)
                    image = event[0]
                    if len(event) == 3:
                        yield Partial(image, event[1], await self._file(plan, orders[image], event[2]))
                    else:
                        picture = event[1].result()
                        left.remove(image)
                        pictures[image] = picture
                        yield Finished(image, await self._file(plan, orders[image], picture.pixels), picture)
            finally:
                for future in futures:
                    future.cancel()

    async def _make(self, plan: Plan, done: dict[int, Picture]) -> GenerateResponse:
        start = monotonic()
        pictures = await gather(self._submit(plan, plan.orders))
        done.update(enumerate(pictures))
        metrics.forecast_ratio.labels(plan.label).observe((monotonic() - start) / max(plan.predicted, 1e-3))
        start = monotonic()
        images = [await self._file(plan, order, picture.pixels) for order, picture in zip(plan.orders, pictures, strict=True)]
        metrics.stage_seconds.labels("png").observe(monotonic() - start)
        return response(plan, pictures, images)

    def _submit(self, plan: Plan, orders: Sequence[Order], preview: Preview | None = None) -> list[Future[Picture]]:
        """Pay, then queue. What is refused is paid back; what was begun is not, whatever becomes of it."""
        self._quotas.take(plan.key, plan.macs)
        try:
            return self._renderer.submit(orders, preview)
        except FlexiError:
            self._quotas.give_back(plan.key, plan.macs)
            raise

    async def _file(self, plan: Plan, order: Order, pixels: Tensor) -> str:
        """The PNG file. Compressing takes a while for large images: it runs beside the event loop."""
        about = {
            "prompt": order.prompt,
            "negative_prompt": order.negative,
            "seed": order.seed,
            "guidance_scale": order.guidance,
            "model": plan.entry.schedule.model.name,
            "tier": plan.entry.tier or "",
            "schedule": plan.entry.digest,
            "software": self._software,
        }
        with tracing.span("png"):
            return await asyncio.to_thread(png, pixels, about)

    @contextmanager
    def _underway(self, plan: Plan) -> Iterator[tuple[asyncio.Event, dict[int, Picture]]]:
        """Counted, told, and open to be cancelled. Inside, the pictures that are done are put into the dictionary."""
        start, outcome, code, pictures = monotonic(), "error", FlexiError.code, dict[int, Picture]()
        try:
            with self.running.entered(plan.key.name, plan.request_id) as stop:
                yield stop, pictures
            outcome = code = "ok"
        except FlexiError as error:
            outcome, code = OUTCOMES.get(type(error), "error"), error.code
            raise
        except (GeneratorExit, asyncio.CancelledError):
            outcome, code = "cancelled", ClientGone.code
            raise
        finally:
            seconds = monotonic() - start
            metrics.request_seconds.labels(plan.label, plan.orders[0].arm, outcome).observe(seconds)
            for observer in self._observers:
                observer.ended(plan, code, seconds, pictures)


CANCELLED = Cancelled("the request was cancelled")


def response(plan: Plan, pictures: Sequence[Picture], images: list[str]) -> GenerateResponse:
    """The answer to a plan whose pictures are there, in the order of its orders."""
    entry, macs = plan.entry, sum(picture.macs for picture in pictures)
    return GenerateResponse(
        images=images,
        request_id=plan.request_id,
        model=entry.schedule.model.name,
        tier=entry.tier,
        schedule=entry.digest,
        version=entry.version,
        arm=plan.assignment.arm if plan.assignment else None,
        experiment=plan.assignment.experiment.name if plan.assignment and plan.assignment.arm else None,
        seed=plan.seed,
        macs=macs,
        macs_per_image=macs // len(pictures),
        relative_cost=entry.relative_cost,
        steps=Steps(**{kind: pictures[0].steps[kind] for kind in Steps.model_fields}),
        predicted_ms=round(1000 * plan.predicted, 3),
        queue_ms=round(1000 * max(picture.queue_seconds for picture in pictures), 3),
        denoise_ms=round(1000 * max(picture.denoise_seconds for picture in pictures), 3),
    )


def _done(tell: Callable[[Event], None], image: int, future: Future[Picture]) -> None:
    tell((image, future))
