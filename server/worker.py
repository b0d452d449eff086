"""The service as a worker runs it: its routes, its middleware, and the app behind them, opened beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Annotated, Any

import bentoml
from pydantic import Field

from registry.errors import FlexiError
from server import supervision
from server.api import GenerateRequest, GenerateResponse
from server.app import App, open_app
from server.errors import problem
from server.http import connection, documents, files, v1, worker_socket
from server.http.drain import Drain
from server.http.edge import Edge
from server.http.opening import Opening
from server.http.pages.routes import no_pages, pages
from server.http.probes import OwnProbes
from server.http.unit import unit_of
from server.models.loading import why
from server.preconditions import OPTIONS, keys, place, settings
from server.request_body import WHOLE
from server.requests.running import disconnected
from server.telemetry import exposition, metrics, tracing
from server.telemetry.log import configure
from server.telemetry.start import Start

log = logging.getLogger(__name__)

LEAVE_SECONDS = 5.0  # for answers that are on their way when the engine is lost, and for probes to hear why a start failed

start = Start()
drain = Drain()
v1.routes.state.drain, v1.routes.state.opening = drain, (opening := Opening())
connection.install()
if settings.worker_sockets and place:
    worker_socket.install(settings.worker_sockets.absolute() / f"{place.number}.sock")


class Generate(GenerateRequest):
    """The request, with the bound that is this server's own."""

    num_images: Annotated[int, Field(ge=1, le=settings.max_images, description="How many images."), WHOLE] = 1


@bentoml.service(**OPTIONS)
@bentoml.asgi_app(v1.routes, path="/")
class Flexiffusion:
    """Images at a chosen cost: clients name a tier, operators decide which schedule it means."""

    def __init__(self) -> None:
        configure()
        self._app: App | None = None
        self._listens = False

    @bentoml.on_startup
    async def open(self) -> None:
        """Begin to load beside the event loop: /livez answers at once, /readyz when the model is warm.

        While other workers are open they take the connections, and this one none until it is.
        """
        metrics.workers.set(settings.workers)
        metrics.watch_seconds.set(settings.watch_seconds)  # before the first look, which may fail for ever
        drain.at_sigterm(settings.drain_seconds)
        self._opening = asyncio.create_task(self._open())
        while supervision.others_open() and not (self._app or opening.failed or drain.stopping):
            await asyncio.sleep(0.1)
        self._listens = True

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Stop loading or working, and send the last spans."""
        self._opening.cancel()
        if self._app:
            await self._app.close()
        await asyncio.to_thread(tracing.use, None)

    @bentoml.api(input_spec=Generate, output_spec=GenerateResponse)
    async def generate(self, ctx: bentoml.Context, **fields: Any) -> Any:
        """Generate images from a prompt."""
        try:
            if self._app is None:
                raise opening.refusal()
            unit = unit_of(fields.get("unit"), ctx.request.headers)
            request = Generate.model_construct(**fields | {"unit": unit})  # BentoML has validated them
            await files.refuse_unkept(self._app, request)
            made = await self._app.answer(request, ctx.request.state.context, disconnected(ctx.request))
            ctx.response.headers[documents.QUEUE_SECONDS] = self._app.queue_seconds
            ctx.response.headers.update(documents.repeats(made.repeats))
            return await files.with_urls(self._app, made, ctx.request) if request.response_format == "url" else made
        except FlexiError as error:
            ctx.response.status_code = error.status  # BentoML puts this one over the response's own
            return problem(error)

    async def _open(self) -> None:
        try:
            start.passed("import")  # of torch, for the most part
            self._app = await open_app(settings, opening.waits, start)
        except Exception as error:
            await self._give_up(why(error))
            return
        seconds = start.ready()
        supervision.started(settings.workers)
        if place:
            place.opened()
        v1.routes.state.app = self._app
        tiers = [entry.tier for entry in self._app.schedules.tiers()]
        log.info("ready", extra={"fields": {"registry": settings.registry, "tiers": tiers, "seconds": seconds}})
        metrics.engine_up.set(1)
        metrics.workers_up.set(1)
        while self._app.device_thread.alive:
            metrics.engine_silent_seconds.set(self._app.device_thread.silent_seconds)
            await asyncio.sleep(0.2)
        metrics.engine_silent_seconds.set(0)
        metrics.engine_up.set(0)
        metrics.workers_up.set(0)
        log.error("the engine is lost: this process ends, so that another one takes its place")
        ends_all = supervision.lost(self._app.device_thread.end, settings.workers)
        drain.begin(LEAVE_SECONDS, supervision.end if ends_all else None)

    async def _give_up(self, reason: str) -> None:
        if place and place.record.gpu:
            reason = f"{reason} (CUDA_VISIBLE_DEVICES={place.record.gpu})"
        if supervision.others_go_on():
            self._leave_the_others(reason)
            return
        opening.fails(reason)
        drain.reason = opening.refusal().text
        supervision.note(reason)
        await asyncio.sleep(LEAVE_SECONDS)
        supervision.end()

    def _leave_the_others(self, reason: str) -> None:
        """End this worker, which could serve once and cannot now: its successor tries again, later."""
        assert place, "only a worker with a place has others beside it"
        seconds = max(0, round(place.record.next_try() - time.time()))
        fields = {"worker": place.number, "next_try_seconds": seconds}
        log.error("a worker cannot start, and the others go on: %s", reason, extra={"fields": fields})
        supervision.given_up()
        if not self._listens:
            exposition.forget_this_process()
            os._exit(1)  # before anybody could connect
        drain.begin(LEAVE_SECONDS)


service: Any = Flexiffusion  # the decorator made a bentoml.Service of the class; its annotations do not say so
service.add_asgi_middleware(tracing.TracingMiddleware)
service.add_asgi_middleware(Edge, drain=drain, keys=keys, origins=settings.cors_origins)
service.add_asgi_middleware(OwnProbes, routes=v1.routes)


@v1.routes.get("/docs.json", summary="This document", responses=documents.errors(*documents.COMMON))
async def docs() -> dict[str, Any]:
    """The OpenAPI document, instead of BentoML's own: this route comes before it."""
    narrowed: dict[str, dict[str, Any]] = {"n": {"maximum": settings.max_images}}
    if settings.webhook_secret is None:
        narrowed["webhook"] = {"maxLength": 0}  # all are refused
    if app := getattr(v1.routes.state, "app", None):
        sizes = ["auto", *map(str, app.generation.planner.sizes)]
        syntaxes: list[Any] = list(app.generation.planner.prompts.syntaxes)
        narrowed |= {"model": {"enum": [name for served in app.models for name in served.names]}}
        if len(app.models) == 1:
            narrowed |= {"size": {"enum": sizes}, "prompt_syntax": {"enum": syntaxes}}
            narrowed["loras"] = documents.named_loras(list(app.default.loras.loras) if app.default.loras else [])
    return documents.document(v1.routes, Generate, narrowed, needs_key=keys is not None)


v1.routes.include_router(pages() if settings.pages else no_pages())
