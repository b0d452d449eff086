"""The read-only pages under /v1, as a small FastAPI application that is mounted into the service."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request
from starlette.responses import Response

from registry.errors import FlexiError
from server.api import REF, ErrorView, ScheduleView, Steps, TiersView, TierView
from server.errors import NotReady, problem
from server.schedules import InForce, Schedules

app = FastAPI(title="Flexiffusion Serve", openapi_url=None, responses={"default": {"model": ErrorView}})


@app.exception_handler(FlexiError)
def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, FlexiError)
    return problem(error)


def _schedules(request: Request) -> Schedules:
    schedules: Schedules | None = getattr(request.app.state, "schedules", None)
    if schedules is None:
        raise NotReady("the model is loading")
    return schedules


InUse = Annotated[Schedules, Depends(_schedules)]


@app.get("/v1/tiers")
def tiers(schedules: InUse, request: Request) -> TiersView:
    """What each tier means now."""
    entries = schedules.tiers()
    return TiersView(
        model=entries[0].schedule.model.name,
        default=schedules.default(request.app.state.default_tier),
        tiers=[_tier_view(entry) for entry in entries],
    )


@app.get("/v1/schedules/{ref}")
async def schedule(ref: Annotated[str, Path(pattern=REF)], schedules: InUse) -> ScheduleView:
    """A schedule by version number, digest, or a digest's beginning."""
    entry = await schedules.find(ref)
    return ScheduleView(digest=entry.digest, version=entry.version, schedule=entry.schedule)


def _tier_view(entry: InForce) -> TierView:
    return TierView(
        tier=entry.tier or "",
        digest=entry.digest,
        version=entry.version,
        steps=Steps.model_validate(entry.schedule.counts()),
        relative_cost=entry.relative_cost,
        fidelity=entry.schedule.fidelity,
    )
