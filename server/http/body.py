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

MAX_BYTES = 128 * 1024  # two prompts of `MAX_PROMPT` characters take up to 12 bytes for each: a surrogate pair as \uD83D\uDE00
SECONDS = 30.0  # for all of it, however slowly it drips


async def checked(receive: Receive, headers: Headers) -> Receive:
    """A `receive` that gives the same body again.

    Raises `UnsupportedMediaType`, `BodyTooLarge`, `BodyTooSlow`, `InvalidJson`, and `ClientGone` when the rest never comes.
    """
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        _refuse_other_types(headers)
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_BYTES:  # before the client sends it, which may wait for a 100
        raise _too_large()
    try:
        async with asyncio.timeout(SECONDS):
            whole = await _whole(receive)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come in {SECONDS:g} s", param="body") from None
    if whole:
        _refuse_other_json(whole)
    first: list[Message] = [{"type": "http.request", "body": whole, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _whole(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(body)


def _refuse_other_types(headers: Headers) -> None:
    """JSON only, and said so. BentoML would read forms and its own binary formats too, none of which this API documents; a
    web page may send a body without a type, or as a form, to any server that its reader's machine reaches."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"the body must be application/json, got {media_type[:64]!r}", param="Content-Type")
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise UnsupportedMediaType(f"the body must not be encoded, got {encoding[:64]!r}", param="Content-Encoding")


def _refuse_other_json(body: bytes) -> None:
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJson(f"invalid JSON: {error}", param="body") from None


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is longer than {MAX_BYTES} bytes", param="body")
