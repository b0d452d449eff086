"""One generate request from its plan to its answer, whole or as a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Protocol

from torch import Tensor

from registry.errors import FlexiError, Overloaded
from server.access.keys import ANONYMOUS
from server.access.quota import Quotas
from server.api import GenerateRequest, GenerateResponse
from server.batching.image_task import ImageResult, ImageSpec, Preview, Progress
from server.errors import Cancelled, ClientGone, DeadlineExceeded, GaveWay, QuotaExceeded, Stopping
from server.requests.context import OK, RequestContext, broken_off
from server.requests.image_files import ImageFiles
from server.requests.made import ImageMade, Made, PreviewMade, RequestPlanned, StepMade
from server.requests.plan import Plan
from server.requests.planner import Planner
from server.requests.repeats import Repeats
from server.requests.response import response
from server.requests.running import Patience, RunningRequests, gather, while_wanted
from server.telemetry import metrics

log = logging.getLogger(__name__)

OUTCOMES: dict[type[FlexiError], str] = {
    Cancelled: "cancelled",
    ClientGone: "cancelled",
    DeadlineExceeded: "deadline",
    GaveWay: "rejected",
    Overloaded: "rejected",
    QuotaExceeded: "rejected",
}
REPEAT = "repeat"  # how a request ended well of whose images some were made before


class Renderer(Protocol):
    """What generation needs of the engine's thread."""

    def submit(
        self, specs: Sequence[ImageSpec], preview: Preview | None = None, progress: Progress | None = None
    ) -> list[Future[ImageResult]]:
        """A future for each image, all of them queued or none. Raises `Overloaded` and `NotReady`."""


class Residency(Protocol):
    """Keeps a model, or LoRAs that were added to it, in memory while somebody needs it."""

    async def enter(self, plan: Plan) -> None:
        """Wait until it is there; it stays until `leave`. Raises `FlexiError`, such as `Overloaded`, where it cannot be."""

    def leave(self, plan: Plan) -> None:
        """It is needed for this plan no longer, or never was."""

    async def gives_way(self, plan: Plan) -> None:
        """Wait until background work has to make room for clients; it then leaves, and may come again."""
        await asyncio.Event().wait()


class RequestObserver(Protocol):
    """Something that wants to know what became of requests."""

    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """Called at the end of each request that has a plan: `context.code` says how it ended, `seconds` how long it took.

        What it raises is logged, and changes no answer.
        """


class Generation:
    """Serves generate requests: plans one, charges its key, queues its images, waits, answers, and calls the observers."""

    def __init__(
        self,
        planner: Planner,
        renderer: Renderer,
        quotas: Quotas,
        observers: Sequence[RequestObserver] = (),
        files: ImageFiles | None = None,
        residencies: Sequence[Residency] = (),
        repeats: Repeats | None = None,
    ) -> None:
        """`residencies`: of what may not be in memory, in the order in which it must come there. repeats: without it, every
        image is made.
        """
        self._repeats = repeats
        self._residencies = residencies
        self.planner = planner
        self.running = RunningRequests()
        self._renderer = renderer
        self._quotas = quotas
        self._observers = observers
        self._files = files or ImageFiles()

    async def answer(
        self, request: GenerateRequest, context: RequestContext, gone: Coroutine[Any, Any, None]
    ) -> GenerateResponse:
        """Work until done, `gone` ends (the client left), somebody cancels, or time is over. Raises members of `FlexiError`."""
        with self._underway(request, context) as patience:
            return await patience.wait(self._make(request, context), (gone, ClientGone()))

    async def stream(
        self, request: GenerateRequest, context: RequestContext, previews: int, progress: bool = False
    ) -> AsyncGenerator[Made]:
        """Previews of each image as they come, and each image as soon as it is done; with `progress`, first the plan, and each
        step. Raises members of `FlexiError`.

        Who stops listening closes the iterator, and the images are given up.
        """
        loop, arrivals = asyncio.get_running_loop(), asyncio.Queue[_Arrival]()

        def arrive(image: int, made: int | tuple[int, Tensor] | Future[ImageResult]) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(arrivals.put_nowait, _Arrival(image, made))

        with self._underway(request, context) as patience:
            plan = await patience.wait(self._plan(request, context, previews))
            specs, to_make = plan.specs, plan.to_make
            futures = self._submit(
                plan,
                lambda spec, i, pixels: arrive(spec.seed - plan.seed, (i, pixels)),
                (lambda spec, step: arrive(spec.seed - plan.seed, step)) if progress else None,
            )
            for image, future in zip(to_make, futures, strict=True):
                future.add_done_callback(partial(arrive, image))
            try:
                if progress:
                    yield RequestPlanned(plan)
                for image, kept in plan.repeats.items():
                    yield await self._made(plan, image, kept)
                while len(context.results) < len(futures):
                    arrival = await patience.wait(arrivals.get(), *self._ends(plan))
                    image, spec = arrival.image, specs[arrival.image]
                    if isinstance(arrival.made, int):
                        yield StepMade(plan, image, arrival.made)
                        continue
                    if not isinstance(arrival.made, Future):
                        index, pixels = arrival.made
                        yield PreviewMade(plan, image, index, await self._files.of_preview(plan, spec, pixels))
                        continue
                    result = context.results[image] = arrival.made.result()
                    self._keep(plan, image, result)
                    if len(context.results) == len(futures):
                        _observe_forecast(plan, monotonic() - context.arrived)
                    yield await self._made(plan, image, result)
            except GaveWay:  # the images that were not done are made again, or never
                self._quotas.give_back(plan.key, plan.macs * (len(futures) - len(context.results)) // len(futures))
                raise
            finally:
                for future in futures:
                    future.cancel()

    async def _plan(self, request: GenerateRequest, context: RequestContext, previews: int = 0) -> Plan:
        self._files.check()
        key = context.key or ANONYMOUS
        plan = await self.planner.plan(request, context.request_id, key, context.arrived, previews)
        plan = context.plan = self._repeats.applied(plan) if self._repeats else plan
        self._quotas.take(key, plan.macs)  # before anything is loaded for it
        if not plan.to_make:
            return plan
        try:
            for residency in self._residencies:
                await residency.enter(plan)
        except BaseException:  # whoever leaves while it waits, too
            self._quotas.give_back(key, plan.macs)
            raise
        return plan

    async def _make(self, request: GenerateRequest, context: RequestContext) -> GenerateResponse:
        plan = await self._plan(request, context)
        to_make = plan.to_make
        futures = self._submit(plan)
        try:
            results = await while_wanted(gather(futures), self._ends(plan))
        except GaveWay:  # it is made again, or never
            self._quotas.give_back(plan.key, plan.macs)
            raise
        finally:
            for future in futures:
                future.cancel()  # of a wait that was given up before it began, too
        context.results.update(zip(to_make, results, strict=True))
        for image, result in context.results.items():
            self._keep(plan, image, result)
        _observe_forecast(plan, monotonic() - context.arrived)
        every = [result for _, result in sorted({**context.results, **plan.repeats}.items())]
        files = await self._files.of(plan, [(spec, result.pixels) for spec, result in zip(plan.specs, every, strict=True)])
        return response(plan, results, files, marked=self._files.marked)

    async def _made(self, plan: Plan, image: int, result: ImageResult) -> ImageMade:
        (file,) = await self._files.of(plan, [(plan.specs[image], result.pixels)])
        return ImageMade(plan, image, file, result, self._files.marked)

    def _keep(self, plan: Plan, image: int, result: ImageResult) -> None:
        if self._repeats:
            self._repeats.keep(plan, image, result)

    def _ends(self, plan: Plan) -> list[tuple[Coroutine[Any, Any, None], FlexiError]]:
        """What ends background work before it is done, and with which error."""
        if not plan.in_background:
            return []
        return [(residency.gives_way(plan), GaveWay()) for residency in self._residencies]

    def _submit(
        self, plan: Plan, preview: Preview | None = None, progress: Progress | None = None
    ) -> list[Future[ImageResult]]:
        """Queue what is to be made. What is refused is paid back; what was begun is not, whatever becomes of it."""
        specs = [plan.specs[image] for image in plan.to_make]
        try:
            return self._renderer.submit(specs, preview, progress) if specs else []
        except FlexiError:
            self._quotas.give_back(plan.key, plan.macs)
            raise

    @contextmanager
    def _underway(self, request: GenerateRequest, context: RequestContext) -> Iterator[Patience]:
        """While the request runs it can be cancelled; when it ends it is counted, and the observers are called."""
        context.request, context.arrived = request, monotonic()
        outcome, context.code = "error", FlexiError.code
        key = (context.key or ANONYMOUS).name
        stopped = broken_off()  # asked for now, as a stream may be closed by a task that is not the request's
        with self.running.entered(key, context.request_id) as stop:
            try:
                limit = self.planner.limit(request) if context.limit is None else context.limit
                yield Patience(context.arrived, limit, stop)
                outcome = context.code = OK
            except FlexiError as error:
                outcome, context.code = OUTCOMES.get(type(error), "error"), error.code
                raise
            except (GeneratorExit, asyncio.CancelledError):
                end = Stopping if stopped() else ClientGone
                outcome, context.code = OUTCOMES.get(end, "error"), end.code
                raise
            finally:
                if context.plan:
                    for residency in reversed(self._residencies):
                        residency.leave(context.plan)
                self._count(context, outcome)

    def _count(self, context: RequestContext, outcome: str) -> None:
        """Count a request that ended; of those without a plan, only who gave up waiting for one: the others were refused."""
        seconds, plan = monotonic() - context.arrived, context.plan
        if plan:
            if outcome == OK and plan.repeats:
                outcome = REPEAT  # its time says nothing of its schedule
                metrics.repeat_macs_total.labels(plan.entry.label).inc(sum(kept.macs for kept in plan.repeats.values()))
            if not plan.in_background:  # which waits as long as there are others: it would look like a slow server
                metrics.request_seconds.labels(plan.entry.label, plan.arm_label, outcome).observe(seconds)
            for warning in plan.warnings:
                metrics.warnings_total.labels(warning.code).inc()
            for observer in self._observers:
                _tell(observer, context, plan, seconds)
        elif outcome in ("cancelled", "deadline"):
            metrics.request_seconds.labels(metrics.CUSTOM, metrics.NO_ARM, outcome).observe(seconds)


@dataclass(frozen=True)
class _Arrival:
    """What the engine's thread has of an image: how many steps are behind it, a preview's number and pixels, or its end."""

    image: int
    made: int | tuple[int, Tensor] | Future[ImageResult]


def _tell(observer: RequestObserver, context: RequestContext, plan: Plan, seconds: float) -> None:
    try:
        observer.ended(context, plan, seconds)
    except Exception:  # the request has its answer already
        log.exception("an observer failed", extra={"fields": {"request_id": context.request_id}})


def _observe_forecast(plan: Plan, seconds: float) -> None:
    """Hold the predicted seconds against those that it took until the pixels were there."""
    if not (plan.in_background or plan.repeats):
        metrics.forecast_ratio.labels(plan.entry.label).observe(seconds / max(plan.predicted, 1e-3))
