"""Who may use the routes of operators: a key with the role, from no other site. A header brings it; there are no cookies."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import Request

from server.access.key_file import OPERATOR
from server.access.keys import ANONYMOUS, Key
from server.errors import Forbidden
from server.http.context import Context
from server.http.opening import loaded_app

HERE = ("same-origin", "none")  # of Sec-Fetch-Site (W3C Fetch Metadata): the console's own page, or an address typed in
MAKE = "python -m server.access new NAME --role operator"
READ_ONLY = (
    f"this server has no API keys, so nobody may act here: {MAKE} --file FILE makes one, FLEXI_API_KEYS=FILE names the file"
)


def why_not(key: Key) -> str | None:
    """What who has this key lacks to act; None where nothing."""
    return READ_ONLY if key is ANONYMOUS else None


async def _looking(request: Request, context: Context) -> Key:
    """Where the server has keys, only operators'; where it has none, everybody's who gets in may look.

    Refuses what a page of another site sends, though it could bring no key and could not read the answer.
    """
    await _refuse_other_sites(request)
    key = context.key or ANONYMOUS
    if key is not ANONYMOUS and key.role != OPERATOR:
        raise Forbidden(
            f"the key {key.name} does not have the role {OPERATOR}: {MAKE} makes one that does", param="Authorization"
        )
    return key


async def _acting(key: Looking) -> Key:
    if reason := why_not(key):
        raise Forbidden(reason, param="Authorization")
    return key


async def _refuse_other_sites(request: Request) -> None:
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None and site not in HERE:
        raise Forbidden(f"a page of another site may not use these routes (Sec-Fetch-Site: {site[:32]!r})", param="Origin")
    if site is None and origin is not None:
        app = await loaded_app(request)
        own = {request.headers.get("host", ""), urlsplit(app.settings.public_url or "").netloc}  # TLS may end before us
        if not (netloc := _netloc(origin)) or netloc not in own:
            raise Forbidden("a page of another origin may not use these routes", param="Origin")


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


Looking = Annotated[Key, Depends(_looking)]
"""Who may look."""
Acting = Annotated[Key, Depends(_acting)]
"""Who may also move tiers and end experiments."""
