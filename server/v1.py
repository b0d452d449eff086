"""The read-only pages under /v1, as a small FastAPI application that is mounted into the service."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request
from starlette.responses import Response

from registry.errors import FlexiError
from server.api import REF, ErrorView, ScheduleView, Steps, TiersView, TierView
from server.errors import NotReady, problem
from server.house import House
from server.schedules import InForce

app = FastAPI(title="Flexiffusion Serve", openapi_url=None, responses={"default": {"model": ErrorView}})


@app.exception_handler(FlexiError)
def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, FlexiError)
    return problem(error)


def _house(request: Request) -> House:
    house: House | None = getattr(request.app.state, "house", None)
    if house is None:
        raise NotReady("the model is loading")
    return house


Open = Annotated[House, Depends(_house)]


@app.get("/v1/tiers")
def tiers(house: Open) -> TiersView:
    """What each tier means now."""
    entries = house.schedules.tiers()
    return TiersView(
        model=entries[0].schedule.model.name,
        default=house.default_tier,
        tiers=[_tier_view(entry) for entry in entries],
    )


@app.get("/v1/schedules/{ref}")
def schedule(ref: Annotated[str, Path(pattern=REF)], house: Open) -> ScheduleView:
    """A schedule by version number, digest, or a digest's beginning."""
    entry = house.schedules.explicit(ref)
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
