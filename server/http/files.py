"""Images by URL: an answer's files are kept for a while, and read back by whoever has the URL."""

from __future__ import annotations

import time
from base64 import b64decode
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from registry.errors import FlexiError, StoreUnavailable
from server.api import GenerateRequest, GenerateResponse
from server.app import App
from server.http.documents import COMMON, errors
from server.http.edge import FILES
from server.http.opening import loaded_app
from server.requests.warnings import file_not_kept, said
from server.storage.kept_files import FILE_ID
from server.telemetry import metrics

router = APIRouter()
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ("png", "jpeg", "webp")},
    },
    304: {"description": "The client has it already"},
}


async def refuse_unkept(app: App, request: GenerateRequest) -> None:
    """Raise `StoreUnavailable`, before anything is spent, where URLs are wanted and the store would not take the files."""
    if request.response_format != "url" or not app.settings.file_seconds:
        return
    try:
        await app.files.check()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"no file can be kept now, ask for b64_json ({error.text})", param="response_format") from None


async def with_urls(app: App, made: GenerateResponse, request: Request) -> GenerateResponse:
    """The answer with URLs for images. Where the store takes no file any more they are data: URLs, with a warning."""
    in_place = [f"data:image/{made.output_format};base64,{image}" for image in made.images]
    if not app.settings.file_seconds:
        return made.model_copy(update={"images": in_place})
    until = int(time.time()) + app.settings.file_seconds
    try:
        ids = [await app.files.keep(b64decode(image), made.output_format, until) for image in made.images]
    except FlexiError:
        notice = file_not_kept()
        metrics.files_total.labels("failed").inc(len(in_place))
        metrics.warnings_total.labels(notice.code).inc()
        return made.model_copy(update={"images": in_place, "warnings": [*made.warnings, *said([notice])]})
    metrics.files_total.labels("ok").inc(len(ids))
    return made.model_copy(update={"images": [url_of(app, request, file_id) for file_id in ids], "expires_at": until})


def url_of(app: App, request: Request, file_id: str) -> str:
    """Where a file can be fetched: at the operator's own address, or at the one that this request came to."""
    return f"{app.settings.public_url or str(request.base_url).rstrip('/')}{FILES}{file_id}"


@router.get(
    FILES + "{file_id}", response_class=Response, responses=ANSWERS | errors(400, 404, *COMMON), openapi_extra={"security": []}
)
async def kept_file(
    file_id: Annotated[str, Path(pattern=FILE_ID)], request: Request, app: Annotated[App, Depends(loaded_app)]
) -> Response:
    """An image file of an answer with URLs, until its time is over. It needs no API key: its name is the secret."""
    left = app.files.until(file_id) - int(time.time())
    headers = {
        "Cache-Control": f"private, max-age={left}, immutable",
        "ETag": f'"{file_id}"',
        "X-Content-Type-Options": "nosniff",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    kept = await app.files.read(file_id)
    return Response(kept.data, media_type=kept.media_type, headers=headers)
