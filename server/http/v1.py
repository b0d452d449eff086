"""Everything under /v1 and the page for Prometheus, as a FastAPI application that is mounted into the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from registry.errors import FlexiError, NotFound
from server.access.keys import Key
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
)
from server.app import App
from server.errors import ClientGone, NotReady, problem
from server.experiments.active import ActiveExperiment
from server.http import openai
from server.http.documents import COMMON, UNIT, WITH_IMAGES, errors
from server.http.sse import EventStream
from server.requests.running import disconnected, while_wanted
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule

app = FastAPI(
    title="Flexiffusion Serve",
    description="Text to image at a chosen cost: clients name a tier, operators decide which schedule it means.",
    openapi_url=None,  # server.http.documents writes one for this and for BentoML's routes
)


@app.exception_handler(FlexiError)
async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, FlexiError)
    return problem(error)


@app.exception_handler(RequestValidationError)
async def _refused(_: Request, error: Exception) -> Response:
    """As FastAPI does it, but without what was sent: no JSON can repeat an infinity."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]}, 422)


async def _house(request: Request) -> App:
    house: App | None = getattr(request.app.state, "house", None)
    if house is None:
        raise NotReady("the model is loading")
    return house


async def _key(request: Request) -> Key:
    key: Key = request.state.key
    return key


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The images; with `stream` true, events as they come",
        "content": {"text/event-stream": {"schema": openai.EVENT}},
    }
}
Open = Annotated[App, Depends(_house)]
Caller = Annotated[Key, Depends(_key)]


@app.get("/metrics", include_in_schema=False)
def metrics_page() -> Response:
    """What Prometheus reads, of all workers."""
    return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


@app.get("/v1/tiers", responses=errors(*COMMON))
async def tiers(house: Open) -> TiersView:
    """What each tier means now."""
    entries = house.schedules.tiers()
    return TiersView(
        model=entries[0].schedule.model.name,
        default=house.default_tier,
        tiers=[_tier_view(entry) for entry in entries],
    )


@app.get("/v1/schedules/{ref}", responses=errors(400, 403, 404, *COMMON))
async def schedule(ref: Annotated[str, Path(pattern=REF)], request: Request, house: Open) -> ScheduleView:
    """A schedule by version number, digest, or a digest's beginning."""
    entry = await while_wanted(house.schedules.find(ref), [(disconnected(request), ClientGone())])
    return ScheduleView(digest=entry.digest, version=entry.version, schedule=entry.schedule)


@app.delete("/v1/requests/{request_id}", responses=errors(400, 404, *COMMON))
async def cancel(request_id: Annotated[str, Path(min_length=1, max_length=64)], house: Open, key: Caller) -> CancelView:
    """Cancel the running requests with this X-Request-Id that came with the same API key; their rows are given up at once."""
    if cancelled := house.generation.running.cancel(key.name, request_id):
        return CancelView(cancelled=cancelled)
    raise NotFound("no such request is running", param="request_id")


@app.post("/v1/feedback", status_code=202, responses=errors(*COMMON, 400, 408, 413, 415))
async def feedback(body: Feedback, house: Open) -> Accepted:
    """Rate a finished request, for the experiment it took part in. Kept whether or not the request is known here."""
    house.trials.rate(body.request_id, body.rating)
    return Accepted()


@app.get("/v1/experiments", responses=errors(*COMMON))
async def experiments(house: Open) -> ExperimentsView:
    """The experiments that split traffic now."""
    return ExperimentsView(experiments=[_experiment_view(running) for running in house.trials.live.running()])


@app.get("/v1/models", responses=errors(*COMMON))
async def models(house: Open) -> openai.ModelsView:
    """The model, as OpenAI's clients list it."""
    return openai.ModelsView(data=[openai.ModelView(id=house.model.ref.name, created=house.opened)])


@app.get("/v1/models/{model}", responses=errors(400, 404, *COMMON))
async def model(model: Annotated[str, Path(min_length=1, max_length=64)], house: Open) -> openai.ModelView:
    """The model, by its name."""
    if model != house.model.ref.name:
        raise NotFound(f"this server has {house.model.ref.name}", param="model")
    return openai.ModelView(id=model, created=house.opened)


@app.post(
    "/v1/images/generations",
    response_model=openai.ImagesAnswer,
    responses=EVENTS | errors(*COMMON, *WITH_IMAGES),
    openapi_extra=UNIT,
)
async def images(body: openai.ImagesRequest, request: Request, house: Open, key: Caller) -> Response | openai.ImagesAnswer:
    """OpenAI's images API: whole, or as a stream of server-sent events."""
    state, generation, size = request.state, house.generation, house.size
    wanted = body.generate_request(house.model.ref.name, size, house.settings.max_images, request.headers)
    if not body.stream:
        made = await generation.answer(wanted, state.request_id, key, disconnected(request), state.log)
        return openai.answer(made, size)
    stream = generation.stream(wanted, state.request_id, key, body.partial_images or 0, state.log)
    first = await while_wanted(anext(stream), [(disconnected(request), ClientGone())])  # so that a refusal has its status
    return EventStream(openai.events(first, stream, size))


def _experiment_view(running: ActiveExperiment) -> ExperimentView:
    experiment = running.experiment
    return ExperimentView(
        name=experiment.name,
        version=experiment.version,
        tier=experiment.tier,
        share=experiment.ramp[running.stage].share,
        arms=[ArmView(name=arm.name, schedule=arm.digest, weight=arm.weight) for arm in experiment.arms],
    )


def _tier_view(entry: ActiveSchedule) -> TierView:
    return TierView(
        tier=entry.tier or "",
        digest=entry.digest,
        version=entry.version,
        steps=Steps.model_validate(entry.schedule.counts()),
        relative_cost=entry.relative_cost,
        fidelity=entry.schedule.fidelity,
    )
