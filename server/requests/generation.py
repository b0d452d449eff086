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
from server import VERSION
from server.access.keys import Key
from server.access.quota import Quotas
from server.api import GenerateRequest, GenerateResponse, Steps
from server.batching.image_task import ImageResult, ImageSpec, Preview
from server.errors import Cancelled, ClientGone, DeadlineExceeded, QuotaExceeded
from server.requests.context import OK, Visit, milliseconds
from server.requests.plan import Plan, Planner
from server.requests.png import png
from server.requests.running import RunningRequests, gather
from server.telemetry import metrics, tracing

OUTCOMES: dict[type[FlexiError], str] = {
    Cancelled: "cancelled",
    ClientGone: "cancelled",
    DeadlineExceeded: "deadline",
    Overloaded: "rejected",
    QuotaExceeded: "rejected",
}


Event = tuple[int, int, Tensor] | tuple[int, Future[ImageResult]]  # an image's preview, or its end


class Renderer(Protocol):
    """What this needs of the dispatcher."""

    def submit(self, specs: Sequence[ImageSpec], preview: Preview | None = None) -> list[Future[ImageResult]]:
        """A future for each order."""


@dataclass(frozen=True)
class Partial:
    """Preview `index` of image `image` of a plan, both 0-based, as a PNG in base64."""

    plan: Plan
    image: int
    index: int
    png: str


@dataclass(frozen=True)
class Finished:
    """Image `image` of a plan, 0-based, as a PNG in base64, and what it took."""

    plan: Plan
    image: int
    png: str
    result: ImageResult


class RequestObserver(Protocol):
    """Somebody who wants to know what became of requests."""

    def ended(self, plan: Plan, outcome: str, seconds: float, results: Mapping[int, ImageResult]) -> None:
        """Told at the end of each request that came to a plan; `outcome` is "ok" or the code of the error.

        `results` are those that were done, by their place among the plan's orders.
        """


class Generation:
    """Plan, pay, queue, wait, answer, tell."""

    def __init__(
        self, planner: Planner, renderer: Renderer, quotas: Quotas, observers: Sequence[RequestObserver] = (), commit: str = ""
    ) -> None:
        """`commit`: of this build; it is in every PNG, where it is known."""
        self.planner = planner
        self.running = RunningRequests()
        self._renderer = renderer
        self._quotas = quotas
        self._observers = observers
        self._software = f"flexiffusion-serve {VERSION}" + (f" ({commit})" if commit else "")

    async def answer(
        self,
        request: GenerateRequest,
        request_id: str,
        key: Key,
        gone: Coroutine[Any, Any, None],
        line: dict[str, Any] | None = None,
    ) -> GenerateResponse:
        """Work until done, `gone` ends (the client left), somebody cancels, or time is over. Raises members of `FlexiError`.

        `line` gets what the request's log line should say of it.
        """
        with self._underway(request, request_id, key, line) as visit:
            return await visit.while_wanted(self._make(visit), (gone, ClientGone()))

    async def stream(
        self, request: GenerateRequest, request_id: str, key: Key, previews: int, line: dict[str, Any] | None = None
    ) -> AsyncGenerator[Partial | Finished]:
        """Previews of each image as they come, and each image as soon as it is done. Raises members of `FlexiError`.

        Who stops listening closes the iterator, and the rows are given up. `line` as for `answer`.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(events.put_nowait, event)

        with self._underway(request, request_id, key, line) as visit:
            plan = await visit.while_wanted(self._plan(visit))
            start, specs = monotonic(), [replace(spec, previews=previews) for spec in plan.specs]
            futures = self._submit(plan, specs, lambda spec, i, pixels: tell((spec.seed - plan.seed, i, pixels)))
            for image, future in enumerate(futures):
                future.add_done_callback(partial(_done, tell, image))
            try:
                while len(visit.results) < len(futures):
                    event = await visit.while_wanted(events.get())
                    image = event[0]
                    if len(event) == 3:
                        (file,) = await self._files(plan, [(specs[image], event[2])])
                        yield Partial(plan, image, event[1], file)
                        continue
                    result = visit.results[image] = event[1].result()
                    if len(visit.results) == len(futures):
                        _forecast(plan, monotonic() - start)
                    (file,) = await self._files(plan, [(specs[image], result.pixels)])
                    yield Finished(plan, image, file, result)
            finally:
                for future in futures:
                    future.cancel()

    async def _plan(self, visit: Visit) -> Plan:
        visit.plan = await self.planner.plan(visit.request, visit.request_id, visit.key, visit.arrived)
        return visit.plan

    async def _make(self, visit: Visit) -> GenerateResponse:
        plan = await self._plan(visit)
        start = monotonic()
        results = await gather(self._submit(plan, plan.specs))
        visit.results.update(enumerate(results))
        _forecast(plan, monotonic() - start)
        images = await self._files(plan, [(spec, each.pixels) for spec, each in zip(plan.specs, results, strict=True)])
        return response(plan, results, images)

    def _submit(self, plan: Plan, specs: Sequence[ImageSpec], preview: Preview | None = None) -> list[Future[ImageResult]]:
        """Pay, then queue. What is refused is paid back; what was begun is not, whatever becomes of it."""
        self._quotas.take(plan.key, plan.macs)
        try:
            return self._renderer.submit(specs, preview)
        except FlexiError:
            self._quotas.give_back(plan.key, plan.macs)
            raise

    async def _files(self, plan: Plan, made: Sequence[tuple[ImageSpec, Tensor]]) -> list[str]:
        start = monotonic()
        files = [await self._file(plan, spec, pixels) for spec, pixels in made]
        metrics.stage_seconds.labels("png").observe(monotonic() - start)
        return files

    async def _file(self, plan: Plan, spec: ImageSpec, pixels: Tensor) -> str:
        """The PNG file. Compressing takes a while for large images: it runs beside the event loop."""
        about = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative,
            "seed": spec.seed,
            "guidance_scale": spec.guidance,
            "model": plan.entry.schedule.model.name,
            "tier": plan.entry.tier or "",
            "schedule": plan.entry.digest,
            "software": self._software,
        }
        with tracing.span("png"):
            return await asyncio.to_thread(png, pixels, about)

    @contextmanager
    def _underway(self, request: GenerateRequest, request_id: str, key: Key, line: dict[str, Any] | None) -> Iterator[Visit]:
        """Counted, told, and open to be cancelled."""
        outcome, code = "error", FlexiError.code
        with self.running.entered(key.name, request_id) as stop:
            visit = Visit(request, request_id, key, self.planner.limit(request), stop)
            try:
                yield visit
                outcome = code = OK
            except FlexiError as error:
                outcome, code = OUTCOMES.get(type(error), "error"), error.code
                raise
            except (GeneratorExit, asyncio.CancelledError):
                outcome, code = "cancelled", ClientGone.code
                raise
            finally:
                if line is not None:
                    line |= visit.line(code)
                self._count(visit, outcome, code)

    def _count(self, visit: Visit, outcome: str, code: str) -> None:
        """Without a plan, only who gave up waiting for one: the others were refused."""
        seconds, plan = monotonic() - visit.arrived, visit.plan
        if plan:
            metrics.request_seconds.labels(plan.label, plan.specs[0].arm, outcome).observe(seconds)
            for observer in self._observers:
                observer.ended(plan, code, seconds, visit.results)
        elif outcome in ("cancelled", "deadline"):
            metrics.request_seconds.labels(metrics.CUSTOM, metrics.NO_ARM, outcome).observe(seconds)


def response(plan: Plan, results: Sequence[ImageResult], images: list[str]) -> GenerateResponse:
    """The answer to a plan whose pictures are there, in the order of its orders."""
    entry, macs = plan.entry, sum(result.macs for result in results)
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
        macs_per_image=macs // len(results),
        relative_cost=entry.relative_cost,
        steps=Steps(**{kind: results[0].steps[kind] for kind in Steps.model_fields}),
        predicted_ms=milliseconds(plan.predicted),
        queue_ms=milliseconds(max(result.queue_seconds for result in results)),
        denoise_ms=milliseconds(max(result.denoise_seconds for result in results)),
    )


def _forecast(plan: Plan, seconds: float) -> None:
    """How good it was, now that the pixels are there."""
    metrics.forecast_ratio.labels(plan.label).observe(seconds / max(plan.predicted, 1e-3))


def _done(tell: Callable[[Event], None], image: int, future: Future[ImageResult]) -> None:
    tell((image, future))
