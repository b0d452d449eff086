"""The body of a request: read whole, within bounds, and JSON by one parser before anybody else sees it.

BentoML and FastAPI each have a parser, and they differ: Python's own takes NaN and lone surrogates, and gives up on deep
nesting in another way. What passes here is good for both. Of a name that comes twice, the last value counts.
"""

from __future__ import annotations

import asyncio

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from server.errors import BodyTooLarge, BodyTooSlow, ClientGone, InvalidJson, UnsupportedMediaType
from server.request_fields import MAX_BASE64

MAX_BYTES = 128 * 1024  # two prompts of `MAX_PROMPT` characters take up to 12 bytes for each: a surrogate pair as \uD83D\uDE00
MAX_BYTES_WITH_IMAGES = MAX_BYTES + 2 * MAX_BASE64  # an image and a mask
EDITS, FORM = "/v1/images/edits", "multipart/form-data"
WITH_IMAGES = ("/generate", EDITS)
SECONDS = 30.0  # for all of it, however slowly it drips


async def checked(receive: Receive, headers: Headers, path: str = "", forms: bool = False) -> Receive:
    """A `receive` that gives the same body again. `forms`: whether a form may come, to the route that takes any.

    Raises `UnsupportedMediaType`, `BodyTooLarge`, `BodyTooSlow`, `InvalidJson`, and `ClientGone` when the rest never comes.
    """
    form = False
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        form = _refuse_other_types(headers, forms and path == EDITS)
    limit = MAX_BYTES_WITH_IMAGES if path in WITH_IMAGES else MAX_BYTES
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:  # before the client sends it, which may wait for a 100
        raise _too_large(limit)
    try:
        async with asyncio.timeout(SECONDS):
            whole = await _whole(receive, limit)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come in {SECONDS:g} s", param="body") from None
    if whole and not form:
        if len(whole) > MAX_BYTES:
            await asyncio.to_thread(_refuse_other_json, whole)
        else:
            _refuse_other_json(whole)
    first: list[Message] = [{"type": "http.request", "body": whole, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _whole(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _refuse_other_types(headers: Headers, forms: bool) -> bool:
    """JSON only, and said so. BentoML would read forms and its own binary formats too, none of which this API documents; a
    web page may send a body without a type, or as a form, to any server that its reader's machine reaches.

    Returns whether it is a form, where forms may come.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    form = forms and media_type == FORM
    if media_type != "application/json" and not form:
        wanted = f"application/json or {FORM}" if forms else "application/json"
        raise UnsupportedMediaType(f"the body must be {wanted}, got {media_type[:64]!r}", param="Content-Type")
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise UnsupportedMediaType(f"the body must not be encoded, got {encoding[:64]!r}", param="Content-Encoding")
    return form


def _refuse_other_json(body: bytes) -> None:
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"invalid JSON: {error}", param="body") from None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is longer than {limit} bytes", param="body")
