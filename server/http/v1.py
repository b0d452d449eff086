"""Everything under /v1 and the page for Prometheus, as a FastAPI application that is mounted into the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from engine.guidance import validated_scales
from engine.image_size import measured_sizes
from registry.errors import FlexiError, NotFound
from server.access.keys import ANONYMOUS
from server.api import (
    REF,
    Accepted,
    ArmView,
    CancelView,
    ExperimentsView,
    ExperimentView,
    Feedback,
    ScheduleView,
    Steps,
    TiersView,
    TierView,
    UnservedTier,
)
from server.app import App
from server.errors import ClientGone, problem
from server.experiments.active import ActiveExperiment
from server.http import files, jobs, openai, probes
from server.http.context import Context
from server.http.documents import COMMON, QUEUE, QUEUE_SECONDS, UNIT, WITH_IMAGES, errors
from server.http.opening import loaded_app
from server.http.sse import EventStream
from server.requests.running import disconnected, while_wanted
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule

routes = FastAPI(
    title="Flexiffusion Serve",
    description="Text to image at a chosen cost: clients name a tier, operators decide which schedule it means.",
    openapi_url=None,  # server.http.documents writes one for this and for BentoML's routes
)
routes.include_router(probes.router)
routes.include_router(files.router)
routes.include_router(jobs.router)


@routes.exception_handler(FlexiError)
async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, FlexiError)
    return problem(error)


@routes.exception_handler(RequestValidationError)
async def _refused(_: Request, error: Exception) -> Response:
    """As BentoML does it: without what was sent (no JSON can repeat an infinity), and places without `body` or `path`."""
    assert isinstance(error, RequestValidationError)
    faults = [{"type": fault["type"], "loc": fault["loc"][1:], "msg": fault["msg"]} for fault in error.errors()]
    return JSONResponse({"detail": faults}, 422)


EVENTS: dict[int | str, dict[str, Any]] = {
    200: QUEUE[200]
    | {
        "description": "The images; with `stream` true, events as they come",
        "content": {"text/event-stream": {"schema": openai.EVENT}},
    }
}
LoadedApp = Annotated[App, Depends(loaded_app)]


@routes.get("/metrics", include_in_schema=False)
def metrics_page() -> Response:
    """What Prometheus reads, of all workers."""
    return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


@routes.get("/v1/tiers", responses=errors(*COMMON))
async def tiers(app: LoadedApp) -> TiersView:
    """What each tier means now."""
    entries = app.schedules.tiers()
    return TiersView(
        model=entries[0].schedule.model.name,
        default=app.default_tier,
        sizes=[str(size) for size in app.generation.planner.sizes],
        tiers=[_tier_view(app, entry) for entry in entries],
        not_served=[UnservedTier(tier=tier, reason=why) for tier, why in sorted(app.schedules.refused.items())],
        warnings=app.warnings,
    )


@routes.get("/v1/schedules/{ref}", responses=errors(400, 403, 404, *COMMON))
async def schedule(ref: Annotated[str, Path(pattern=REF)], request: Request, app: LoadedApp) -> ScheduleView:
    """A schedule by version number, digest, or a digest's beginning."""
    entry = await while_wanted(app.schedules.find(ref), [(disconnected(request), ClientGone())])
    return ScheduleView(digest=entry.digest, version=entry.version, schedule=entry.schedule)


@routes.delete("/v1/requests/{request_id}", responses=errors(400, 404, *COMMON))
async def cancel(request_id: Annotated[str, Path(min_length=1, max_length=64)], app: LoadedApp, context: Context) -> CancelView:
    """Cancel the running requests with this X-Request-Id that came with the same API key; their images are given up at once."""
    if cancelled := app.generation.running.cancel((context.key or ANONYMOUS).name, request_id):
        return CancelView(cancelled=cancelled)
    raise NotFound("no such request is running", param="request_id")


@routes.post("/v1/feedback", status_code=202, responses=errors(*COMMON, 400, 408, 413, 415))
async def feedback(body: Feedback, app: LoadedApp) -> Accepted:
    """Rate a finished request, for the experiment it took part in. Kept whether or not the request is known here."""
    app.experiments.rate(body.request_id, body.rating)
    return Accepted()


@routes.get("/v1/experiments", responses=errors(*COMMON))
async def experiments(app: LoadedApp) -> ExperimentsView:
    """The experiments that split traffic now."""
    return ExperimentsView(experiments=[_experiment_view(running) for running in app.experiments.active.running()])


@routes.get("/v1/models", responses=errors(*COMMON))
async def models(app: LoadedApp) -> openai.ModelsView:
    """The model, as OpenAI's clients list it."""
    return openai.ModelsView(data=[_model_view(app, name) for name in app.model_names])


@routes.get("/v1/models/{model:path}", responses=errors(400, 404, *COMMON))
async def model(model: Annotated[str, Path(min_length=1, max_length=128)], app: LoadedApp) -> openai.ModelView:
    """The model, by one of its names."""
    if model not in app.model_names:
        raise NotFound(openai.unknown_model(app.model_names), param="model")
    return _model_view(app, model)


@routes.post(
    "/v1/images/generations",
    response_model=openai.ImagesAnswer,
    responses=EVENTS | errors(*COMMON, *WITH_IMAGES),
    openapi_extra=UNIT,
)
async def images(
    body: openai.ImagesRequest, request: Request, sent: Response, app: LoadedApp, context: Context
) -> Response | openai.ImagesAnswer:
    """OpenAI's images API: whole, or as a stream of server-sent events."""
    generation = app.generation
    wanted = body.generate_request(app.model_names, app.settings.max_images, request.headers)
    if not body.stream:
        await files.refuse_unkept(app, wanted)
        made = await generation.answer(wanted, context, disconnected(request))
        if body.wants_urls:
            made = await files.with_urls(app, made, request)
        sent.headers[QUEUE_SECONDS] = app.queue_seconds
        return openai.answer(made, body.wants_urls)
    stream = generation.stream(wanted, context, body.partial_images or 0)
    first = await while_wanted(anext(stream), [(disconnected(request), ClientGone())])  # so that a refusal has its status
    return EventStream(openai.events(first, stream))


def _model_view(app: App, name: str) -> openai.ModelView:
    return openai.ModelView(id=name, created=app.opened, root=app.model_names[0])


def _experiment_view(running: ActiveExperiment) -> ExperimentView:
    experiment = running.experiment
    return ExperimentView(
        name=experiment.name,
        version=experiment.version,
        tier=experiment.tier,
        share=experiment.ramp[running.stage].share,
        arms=[ArmView(name=arm.name, schedule=arm.digest, weight=arm.weight) for arm in experiment.arms],
    )


def _tier_view(app: App, entry: ActiveSchedule) -> TierView:
    return TierView(
        tier=entry.label,
        digest=entry.digest,
        version=entry.version,
        steps=Steps.model_validate(entry.schedule.counts()),
        relative_cost=entry.relative_cost,
        fidelity=entry.schedule.fidelity,
        default_guidance=app.generation.planner.default_guidance.of(entry),
        validated_guidance=list(validated_scales(entry.schedule)),
        validated_sizes=[str(size) for size in measured_sizes(entry.schedule, app.model.image_size)],
    )
