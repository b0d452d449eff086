"""What orchestrators ask every few seconds: does the process work, does it take requests, and if not, why."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api import AliveView, ReadyView
from server.errors import NotReady, Stopping
from server.http.documents import errors
from server.http.drain import Drain
from server.http.opening import loaded_app

LIVE = ("/livez", "/healthz")
READY = "/readyz"

router = APIRouter()
PUBLIC: dict[str, Any] = {"security": []}  # nobody needs a key for these


@router.head("/livez", include_in_schema=False)
@router.head("/healthz", include_in_schema=False)
@router.get("/livez", summary="Whether the process works", responses=errors(503), openapi_extra=PUBLIC)
@router.get("/healthz", summary="Whether the process works, as /livez says", responses=errors(503), openapi_extra=PUBLIC)
async def live(request: Request) -> AliveView:
    """A server that could not start, or lost its engine, says so with 503: it wants to be restarted."""
    state = request.app.state
    if app := getattr(state, "app", None):
        if not app.device_thread.alive:
            raise NotReady(LOST)
    elif state.opening.failed:
        raise state.opening.refusal()
    return AliveView()


LOST = "the engine is lost: this process ends, and another one takes its place"


@router.head(READY, include_in_schema=False)
@router.get(READY, summary="Whether requests are taken", responses=errors(503), openapi_extra=PUBLIC)
async def ready(request: Request) -> ReadyView:
    """What is served once the model is warm; until then, and while the server stops, 503 with the reason."""
    drain: Drain = request.app.state.drain
    if drain.stopping:
        raise Stopping(drain.reason)
    app = await loaded_app(request)
    if not app.device_thread.alive:
        raise NotReady(LOST)
    tiers = [entry.label for entry in app.schedules.tiers()]
    return ReadyView(model=app.model.ref.name, default=app.default_tier, tiers=tiers, warnings=app.warnings)


class OwnProbes:
    """ASGI: answers the probes by these routes. BentoML's own would come first, and say nothing but yes or no."""

    def __init__(self, app: ASGIApp, routes: ASGIApp) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        own = scope["type"] == "http" and scope["path"] in (*LIVE, READY)
        await (self._routes if own else self._app)(scope, receive, send)
