"""Routes of operators: what the console shows and does. Scripts may use them too; the command lines need no server."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field, JsonValue

from registry.document import NAME
from registry.experiments.declaration import ExperimentState
from registry.records import Alias
from registry.site.reader import VERSIONS
from registry.site.views import ShownDifference, ShownExperiments, ShownFront, ShownMoves, ShownSchedule
from registry.tiers import OTHER_MEANING
from server.api import AUTO
from server.app import App
from server.http.cors import OPERATOR_ROUTES
from server.http.documents import COMMON, errors
from server.http.opening import loaded_app
from server.http.operator_access import Acting, Looking, why_not
from server.operator.second_person import RequestView
from server.operator.views import OperatorTiers, OperatorView, ReportView, ServerWork, ShadowView
from server.request_body import CLIENTS, WHOLE
from server.request_fields import REF

router = APIRouter(prefix=OPERATOR_ROUTES, tags=["operators"])

READ = (400, 403, 404, 429, *COMMON)
ACT = (400, 403, 404, 408, 409, 413, 415, 429, *COMMON)
EXAMPLE_REASON = "rFID 0.8 lower at the same cost"


class _Action(BaseModel):
    """What every action says."""

    model_config = CLIENTS

    reason: Annotated[str, Field(min_length=1, max_length=2000, description="Why: it is kept.", examples=[EXAMPLE_REASON])]


class RollbackRequest(_Action):
    """Let a tier mean again what it meant before."""

    moves: Annotated[
        int,
        Field(ge=0, le=10**9, description="As GET …/tiers showed it: 409 if the tier was moved since.", examples=[3]),
        WHOLE,
    ]


class ApproveRequest(_Action):
    """Speak for a promotion that somebody else asked for."""


class PromoteRequest(RollbackRequest):
    """Let a tier mean another schedule."""

    schedule: Annotated[
        str,
        Field(pattern=REF, description="A version number, or a digest or its beginning.", examples=["12"]),
    ]


class EndRequest(_Action):
    """End an experiment. Killing one takes no notice of `transitions`: nothing keeps an operator from that."""

    version: Annotated[int, Field(ge=1, le=10**9, description="Of the declaration.", examples=[1]), WHOLE]
    transitions: Annotated[
        int,
        Field(ge=1, le=10**9, description="As GET …/experiments showed it: 409 if something was done since.", examples=[2]),
        WHOLE,
    ]


class RampRequest(EndRequest):
    """Raise an experiment's share to the next stage of its ramp."""

    force: Annotated[bool, Field(description="Go on although the stage's gate is not passed.")] = False


LoadedApp = Annotated[App, Depends(loaded_app)]
ModelName = Annotated[str | None, Query(max_length=128, description="One of GET /v1/models; without it, the first.")]
NO_TIER: dict[str, JsonValue] = {"not": {"pattern": f"^({OTHER_MEANING})$"}}
NO_REF: dict[str, JsonValue] = {"not": {"const": AUTO}}
Tier = Annotated[str, Path(pattern=NAME, examples=["balanced"], json_schema_extra=NO_TIER)]
Request = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", description="A request's id.", examples=["0123456789ab"])]
Name = Annotated[str, Path(pattern=NAME, description="Of the experiment.", examples=["fewer-full-steps"])]
Ref = Annotated[
    str,
    Path(
        pattern=NAME,
        description="A tier, a version number, a digest or its beginning.",
        examples=["balanced"],
        json_schema_extra=NO_REF,
    ),
]
Other = Annotated[
    str,
    Query(
        pattern=NAME,
        description="A tier, a version number, a digest or its beginning.",
        examples=["12"],
        json_schema_extra=NO_REF,
    ),
]


@router.get("", responses=errors(400, 403, *COMMON))
async def operator(key: Looking, app: LoadedApp) -> OperatorView:
    """Who asks, and what they may do here."""
    reason = why_not(key)
    return OperatorView(
        name=key.name,
        may_act=reason is None,
        why_not=reason,
        models=[served.name for served in app.open_models],
        registry=app.settings.registry,
        watch_seconds=app.settings.watch_seconds,
        commit=app.settings.commit,
    )


@router.get("/work", responses=errors(400, 403, 429, *COMMON))
async def work(_: Looking, app: LoadedApp) -> ServerWork:
    """What the server does now, by its own metrics."""
    return await app.operator.work()


@router.get("/front", responses=errors(*READ))
async def front(
    _: Looking, app: LoadedApp, model: ModelName = None, last: Annotated[int, Query(ge=1, le=VERSIONS)] = 100
) -> ShownFront:
    """The newest versions of a model's schedules: what they cost, what they are worth, which tiers point at them."""
    return await app.operator.front(app.served(model), last)


@router.get("/tiers", responses=errors(*READ))
async def tiers(_: Looking, app: LoadedApp, model: ModelName = None) -> OperatorTiers:
    """What tiers mean in the registry and in the process that answers, and what a rollback would lead to."""
    return await app.operator.tiers(app.served(model))


@router.get("/tiers/{tier}/moves", responses=errors(*READ))
async def moves(
    tier: Tier, _: Looking, app: LoadedApp, model: ModelName = None, last: Annotated[int, Query(ge=1, le=500)] = 50
) -> ShownMoves:
    """A tier's history, newest first."""
    return await app.operator.moves(app.served(model), tier, last)


@router.get("/tiers/{tier}/shadow", responses=errors(*READ))
async def shadow(tier: Tier, _: Looking, app: LoadedApp, model: ModelName = None) -> ShadowView:
    """A tier's candidate beside what the tier means, paired image by image. At most a minute old."""
    return await app.operator.shadow(app.served(model), tier)


@router.post("/tiers/{tier}/promote", responses=errors(*ACT))
async def promote(
    tier: Tier, body: PromoteRequest, key: Acting, app: LoadedApp, model: ModelName = None
) -> Alias | RequestView:
    """Let a tier mean another schedule, as `python -m registry promote` does: servers follow within their watch interval.

    Where the tier takes a second person, the answer is the request that this made; its `id` is what another one approves.
    """
    return await app.operator.promote(app.served(model), key.name, tier, body.schedule, body.reason, body.moves)


@router.post("/requests/{request}/approve", responses=errors(*ACT))
async def approve(request: Request, body: ApproveRequest, key: Acting, app: LoadedApp, model: ModelName = None) -> Alias | None:
    """Be the second person of a promotion: the tier's alias, moved. 409 for who asked for it."""
    return await app.operator.approve(app.served(model), key.name, request, body.reason)


@router.post("/tiers/{tier}/rollback", responses=errors(*ACT))
async def rollback(tier: Tier, body: RollbackRequest, key: Acting, app: LoadedApp, model: ModelName = None) -> Alias:
    """Let a tier mean again what it meant before its current schedule."""
    return await app.operator.rollback(app.served(model), key.name, tier, body.reason, body.moves)


@router.get("/schedules/{ref}", responses=errors(*READ))
async def schedule(ref: Ref, _: Looking, app: LoadedApp, model: ModelName = None) -> ShownSchedule:
    """A schedule with its document, provenance and signature."""
    return await app.operator.schedule(app.served(model), ref)


@router.get("/schedules/{ref}/difference", responses=errors(*READ))
async def difference(ref: Ref, to: Other, _: Looking, app: LoadedApp, model: ModelName = None) -> ShownDifference:
    """What changes from this schedule to another."""
    return await app.operator.difference(app.served(model), ref, to)


@router.get("/experiments", responses=errors(*READ))
async def experiments(_: Looking, app: LoadedApp, model: ModelName = None) -> ShownExperiments:
    """All experiments of a model: declaration, state and history."""
    return await app.operator.experiments(app.served(model))


@router.get("/experiments/{name}/report", responses=errors(*READ))
async def report(name: Name, _: Looking, app: LoadedApp, model: ModelName = None) -> ReportView:
    """What its arms did, with intervals that hold at all times, and how they came to be so. At most a minute old."""
    return await app.operator.report(app.served(model), name)


@router.post("/experiments/{name}/ramp", responses=errors(*ACT))
async def ramp(name: Name, body: RampRequest, key: Acting, app: LoadedApp, model: ModelName = None) -> ExperimentState:
    """Go to the next stage's share, if this stage's gate is passed and no conclusion is blocked."""
    served, seen = app.served(model), (body.version, body.transitions)
    return await app.operator.ramp(served, key.name, name, body.reason, *seen, force=body.force)


@router.post("/experiments/{name}/stop", responses=errors(*ACT))
async def stop(name: Name, body: EndRequest, key: Acting, app: LoadedApp, model: ModelName = None) -> ExperimentState:
    """End it. Its events stay."""
    served = app.served(model)
    return await app.operator.end(served, key.name, name, "stop", body.reason, body.version, body.transitions)


@router.post("/experiments/{name}/kill", responses=errors(*ACT))
async def kill(name: Name, body: EndRequest, key: Acting, app: LoadedApp, model: ModelName = None) -> ExperimentState:
    """End it because of harm: every server follows within its watch interval."""
    return await app.operator.end(app.served(model), key.name, name, "kill", body.reason, body.version, None)
