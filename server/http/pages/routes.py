"""The routes of the pages. They are no part of the API, so its document does not have them; they need no key, as they hold
nothing: what they show, their scripts ask the API for, with the visitor's own key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from registry.errors import NotFound
from registry.site import ASSETS
from server.http.pages.assets import Asset, asset, assets_in

HERE = Path(__file__).parent
PAGES = {"/": "playground.html", "/console": "console.html"}  # file by path
FOLDER = "/assets/"


def is_page(path: str) -> bool:
    """Whether a path is a page's, or what one loads."""
    return path in PAGES or path.startswith(FOLDER)


def pages() -> APIRouter:
    """All of them, read now."""
    router, assets = APIRouter(include_in_schema=False), assets_in(ASSETS, HERE / "assets")
    for path, name in PAGES.items():
        router.add_api_route(path, _answering(asset(HERE / name)))

    @router.get(FOLDER + "{path:path}")
    async def loaded(path: str, request: Request) -> Response:
        """A script, a style sheet or an icon."""
        try:
            found = assets[path]
        except KeyError:
            raise NotFound("there is no such file", param="path") from None
        return found.answer(request)

    return router


def no_pages() -> APIRouter:
    """Instead of them, for a server that shall have none: `/` is the API's document."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> RedirectResponse:
        """Instead of BentoML's page, which loads scripts from elsewhere."""
        return RedirectResponse("/docs.json")

    return router


def _answering(page: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return page.answer(request)

    return answer
