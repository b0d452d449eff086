"""Everything under /v1 and the page for Prometheus, as a FastAPI application that is mounted into the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from engine.guidance import validated_scales
from engine.image_size import measured_sizes
from engine.prompts import prompt_kind
from registry.errors import FlexiError, NotFound
from server.access.keys import ANONYMOUS
from server.api import (
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
from server.http import files, image_events, jobs, openai, operator, probes
from server.http.context import Context
from server.http.documents import COMMON, EDITS_BODY, QUEUE, QUEUE_SECONDS, UNIT, WITH_IMAGES, errors, repeats
from server.http.edits import edits_request
from server.http.opening import loaded_app
from server.http.sse import EventStream
from server.loras.offered_loras import OfferedLora
from server.models.served_model import ServedModel
from server.request_fields import REF
from server.requests.context import RequestContext
from server.requests.running import disconnected, while_wanted
from server.requests.usage import milliseconds
from server.telemetry import exposition
from server.telemetry.served import begin as serve_as
from server.tiers.active import ActiveSchedule

routes = FastAPI(
    title="Flexiffusion Serve",
    description="Images at a chosen cost: clients name a tier, operators decide which schedule it means.",
    openapi_url=None,  # server.http.documents writes one for this and for BentoML's routes
)
routes.include_router(probes.router)
routes.include_router(files.router)
routes.include_router(jobs.router)
routes.include_router(operator.router)


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
        "content": {"text/event-stream": {"schema": image_events.EVENT}},
    }
}
LoadedApp = Annotated[App, Depends(loaded_app)]
ModelName = Annotated[str | None, Query(max_length=128, description="One of GET /v1/models; without it, the first.")]


@routes.get("/metrics", include_in_schema=False)
def metrics_page() -> Response:
    """What Prometheus reads, of all workers."""
    return Response(exposition.page(), media_type=CONTENT_TYPE_LATEST)


@routes.get("/v1/tiers", responses=errors(400, 404, *COMMON))
async def tiers(app: LoadedApp, model: ModelName = None) -> TiersView:
    """What each tier of a model means now."""
    served = app.served(model)
    entries, planner = served.schedules.tiers(), served.generation.planner
    return TiersView(
        model=entries[0].schedule.model.name,
        default=served.default_tier,
        sizes=[str(size) for size in planner.sizes],
        max_images=app.settings.max_images,
        prompt_kind=prompt_kind(planner.model.prompts),
        classes=list(planner.model.prompts.classes),
        guides=planner.model.prompts.guides,
        examples=served.examples,
        prompt_chunks=planner.prompts.most,
        prompt_syntaxes=list(planner.prompts.syntaxes),
        loras=list(served.loras.loras) if served.loras else [],
        tiers=[_tier_view(served, entry) for entry in entries],
        not_served=[UnservedTier(tier=tier, reason=why) for tier, why in sorted(served.schedules.refused.items())],
        warnings=served.warnings,
    )


@routes.get("/v1/schedules/{ref}", responses=errors(400, 403, 404, *COMMON))
async def schedule(
    ref: Annotated[str, Path(pattern=REF)], request: Request, app: LoadedApp, model: ModelName = None
) -> ScheduleView:
    """A schedule of a model by version number, digest, or a digest's beginning."""
    entry = await while_wanted(app.served(model).schedules.find(ref), [(disconnected(request), ClientGone())])
    return ScheduleView(digest=entry.digest, version=entry.version, schedule=entry.schedule)


@routes.delete("/v1/requests/{request_id}", responses=errors(400, 404, *COMMON))
async def cancel(request_id: Annotated[str, Path(min_length=1, max_length=64)], app: LoadedApp, context: Context) -> CancelView:
    """Cancel the running requests with this X-Request-Id that came with the same API key; their images are given up at once."""
    key = (context.key or ANONYMOUS).name
    if cancelled := await app.cancel(key, request_id):
        return CancelView(cancelled=cancelled)
    raise NotFound("no such request is running", param="request_id")


@routes.post("/v1/feedback", status_code=202, responses=errors(*COMMON, 400, 408, 413, 415))
async def feedback(body: Feedback, app: LoadedApp) -> Accepted:
    """Rate a finished request, for the experiment it took part in. Kept whether or not the request is known here."""
    for served in app.open_models:  # each picks out its own by the id
        served.experiments.rate(body.request_id, body.rating)
    return Accepted()


@routes.get("/v1/experiments", responses=errors(*COMMON))
async def experiments(app: LoadedApp) -> ExperimentsView:
    """The experiments that split traffic now."""
    running = [(served.name, one) for served in app.open_models for one in served.experiments.active.running()]
    return ExperimentsView(experiments=[_experiment_view(*one) for one in running])


@routes.get("/v1/models", responses=errors(*COMMON))
async def models(app: LoadedApp) -> openai.ModelsView:
    """All models, as OpenAI's clients list them, and which of them are in memory."""
    return openai.ModelsView(data=[_model_view(app, served, name) for served in app.models for name in served.names])


@routes.get("/v1/models/{model:path}", responses=errors(400, 404, *COMMON))
async def model(model: Annotated[str, Path(min_length=1, max_length=128)], app: LoadedApp) -> openai.ModelView:
    """A model, by one of its names."""
    return _model_view(app, app.served(model), model)


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
    return await _made(body, "image_generation", request, sent, app, context)


@routes.post(
    "/v1/images/edits",
    response_model=openai.ImagesAnswer,
    responses=EVENTS | errors(*COMMON, *WITH_IMAGES),
    openapi_extra=UNIT | EDITS_BODY,
)
async def image_edits(request: Request, sent: Response, app: LoadedApp, context: Context) -> Response | openai.ImagesAnswer:
    """OpenAI's image edits: images that start from another one. The answer and the streams are as those of generations."""
    return await _made(await edits_request(request), "image_edit", request, sent, app, context)


async def _made(
    body: openai.ImagesRequest, kind: image_events.Kind, request: Request, sent: Response, app: App, context: RequestContext
) -> Response | openai.ImagesAnswer:
    served = app.served(body.model)
    generation = served.generation
    serve_as(served.counted_as)
    wanted = body.generate_request(served.names, served.schedules.names(), app.settings.max_images, request.headers)
    if not body.stream:
        await files.refuse_unkept(app, wanted)
        made = await generation.answer(wanted, context, disconnected(request))
        if body.wants_urls:
            made = await files.with_urls(app, made, request)
        sent.headers[QUEUE_SECONDS] = app.queue_seconds
        sent.headers.update(repeats(made.repeats))
        return openai.answer(made, body.wants_urls)
    stream = generation.stream(wanted, context, body.partial_images or 0, body.progress)
    first = await while_wanted(anext(stream), [(disconnected(request), ClientGone())])  # so that a refusal has its status
    return EventStream(image_events.events(first, stream, kind), repeats(first.plan.repeats))


def _model_view(app: App, served: ServedModel, name: str) -> openai.ModelView:
    parts = served.parts
    return openai.ModelView(
        id=name,
        created=app.opened,
        root=served.name,
        state=served.state,
        fault=served.fault or None,
        load_seconds=served.load_seconds,
        memory_bytes=served.bytes,
        sizes=[str(size) for size in parts.generation.planner.sizes] if parts else [],
        tiers=[entry.label for entry in parts.schedules.tiers()] if parts else [],
        loras=[_lora_offer(lora) for lora in served.loras.loras.values()] if served.loras else [],
    )


def _lora_offer(lora: OfferedLora) -> openai.LoraOffer:
    return openai.LoraOffer(name=lora.name, digest=lora.digest, layers=lora.counts)


def _experiment_view(model: str, running: ActiveExperiment) -> ExperimentView:
    experiment = running.experiment
    return ExperimentView(
        model=model,
        name=experiment.name,
        version=experiment.version,
        tier=experiment.tier,
        share=experiment.ramp[running.stage].share,
        arms=[ArmView(name=arm.name, schedule=arm.digest, weight=arm.weight) for arm in experiment.arms],
    )


def _tier_view(served: ServedModel, entry: ActiveSchedule) -> TierView:
    macs, seconds = served.generation.planner.usual(entry)
    return TierView(
        tier=entry.label,
        digest=entry.digest,
        version=entry.version,
        steps=Steps.model_validate(entry.schedule.counts()),
        relative_cost=entry.relative_cost,
        macs=macs,
        predicted_ms=milliseconds(seconds),
        fidelity=entry.schedule.fidelity,
        default_guidance=served.generation.planner.default_guidance.of(entry),
        validated_guidance=list(validated_scales(entry.schedule)),
        validated_sizes=[str(size) for size in measured_sizes(entry.schedule, served.generation.planner.sizes[0])],
    )
