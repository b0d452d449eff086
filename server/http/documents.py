"""The OpenAPI document: every route, and every answer that it can give.

FastAPI writes it, from its own routes and from one that stands for BentoML's `/generate`: BentoML's own document knows
neither null nor our errors. What holds for all routes is said here once.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from server import VERSION
from server.api import REFUSED, REQUEST_ID, ErrorView, GenerateResponse
from server.http.body import FORM
from server.http.edits import EditsRequest, form_schema
from server.http.job_request import FITTING, JobRequest
from server.http.openai import ImagesRequest
from server.http.unit import HEADER, PATTERN
from server.request_body import RequestBody
from server.request_fields import LoraWish

Object = dict[str, Any]

WHY = {
    400: "A field outside its limits, or a body that is not JSON",
    401: "No API key, or one that is not in force",
    403: "The schedule is not signed by a trusted key, a second person must approve the promotion, or the key does not have "
    "the role of an operator",
    404: "There is no such thing",
    408: "The body did not come in time",
    409: "Cancelled by DELETE /v1/requests/{request_id}; or a LoRA's file was changed; or of a job, its Idempotency-Key came "
    "with another one before; of an operator's action, somebody else was first",
    413: "The body is too long",
    415: "The body is of another kind than this route takes",
    429: "The queue is full, or the key's quota is used up",
    500: "A fault of the server, images that cannot be marked as they should be, or an object in its store that is not what it "
    "should be",
    503: "The server is loading or stopping, or the registry is away",
    504: "Not done in time",
}
COMMON = (500, 503)
WITH_IMAGES = (400, 403, 404, 408, 409, 413, 415, 429, 504)
REF = "#/components/schemas/{model}"
ERROR = {"application/json": {"schema": {"$ref": REF.format(model="ErrorView")}}}
TEXT = {"text/plain": {"schema": {"type": "string"}}}
HEADERS: dict[str, Object] = {
    "X-Request-Id": {
        "description": "The client's own, if it matches this pattern, else a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": REQUEST_ID},
    },
    "Retry-After": {
        "description": "Seconds until it is worth to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "X-Should-Retry": {"description": "Read by OpenAI's clients.", "required": True, "schema": {"const": "false"}},
}
SENT_WITH = {
    "401": "WWW-Authenticate",
    "409": "X-Should-Retry",
    "429": "Retry-After",
    "503": "Retry-After",
    "504": "X-Should-Retry",
}
QUEUE_SECONDS = "X-Flexi-Queue-Seconds"
REPEATS = "X-Flexi-Repeats"
QUEUE: dict[int | str, Object] = {  # for the `responses` of a route that makes images
    200: {
        "description": "The images",
        "headers": {
            QUEUE_SECONDS: {
                "description": "Predicted seconds of the work that the server has before it, background work too.",
                "schema": {"type": "number", "minimum": 0},
            },
            REPEATS: {
                "description": "How many of the images were made before, where any was: nothing ran for them.",
                "schema": {"type": "integer", "minimum": 1},
            },
        },
    }
}
UNIT: Object = {  # for the `openapi_extra` of a route
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "description": "User or session, for experiments, where the body names none.",
            "schema": {"type": "string", "pattern": PATTERN},
        }
    ]
}
EDITS_FORM = "EditsForm"
EDITS_BODY: Object = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": REF.format(model=EditsRequest.__name__)}},
            FORM: {"schema": {"$ref": REF.format(model=EDITS_FORM)}},
        },
    }
}
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def repeats(images: Sized) -> dict[str, str]:
    """The headers of an answer of which these images are repeats."""
    return {REPEATS: str(len(images))} if len(images) else {}


def errors(*statuses: int) -> dict[int | str, Object]:
    """For the `responses` of a route: these error statuses, as this server answers them."""
    return {status: {"model": ErrorView, "description": WHY[status]} for status in statuses}


def document(app: FastAPI, generate: type[RequestBody], narrowed: dict[str, Object], needs_key: bool) -> Object:
    """The document of this server.

    generate: what `/generate` takes. narrowed: {field of a request: keywords}, limits that are this server's own.
    """
    routes = [*app.routes, _generate_route(generate)]
    spec = get_openapi(title=app.title, version=VERSION, description=app.description, routes=routes)
    schemas: Object = spec["components"]["schemas"]
    for made_by_fastapi in ("HTTPValidationError", "ValidationError"):
        schemas.pop(made_by_fastapi, None)
    for body in (generate, ImagesRequest, EditsRequest, JobRequest):  # not FastAPI's, which rounds the limits of integers
        schemas[body.__name__] = body.published_schema()
        for field in narrowed.keys() & body.model_fields.keys():
            schemas[body.__name__]["properties"][field]["anyOf"][0] |= narrowed[field]
    schemas[EDITS_FORM] = form_schema(schemas[EditsRequest.__name__])
    schemas[generate.__name__]["not"] = REFUSED
    schemas[JobRequest.__name__] |= FITTING
    spec["paths"] |= _of_bentoml()
    for operations in spec["paths"].values():
        for operation in operations.values():
            _complete(operation["responses"], needs_key and "security" not in operation)
    if needs_key:
        spec["components"]["securitySchemes"], spec["security"] = SECURITY, [{name: []} for name in SECURITY]
    return spec


def named_loras(names: list[str]) -> Object:
    """Keywords for the field `loras` of a server with these, or with none."""
    if not names:
        return {"maxItems": 0}
    wish = LoraWish.model_json_schema()
    wish["properties"]["name"] = {"enum": names}
    return {"items": wish}


def _generate_route(generate: type[BaseModel]) -> APIRoute:
    def endpoint(body: Any) -> None:
        """Generate images from a prompt."""

    endpoint.__annotations__["body"] = generate
    responses = QUEUE | errors(*COMMON, *WITH_IMAGES)
    return APIRoute(
        "/generate",
        endpoint,
        methods=["POST"],
        name="generate",
        response_model=GenerateResponse,
        responses=responses,
        openapi_extra=UNIT,
    )


def _of_bentoml() -> Object:
    """Operations by path: the routes that BentoML answers itself, and the page for Prometheus."""

    def page(summary: str, content: Object, *statuses: int) -> Object:
        faults = {str(status): {"description": WHY[status], "content": ERROR} for status in statuses}
        return {"summary": summary, "responses": {"200": {"description": summary, "content": content}} | faults}

    public: Object = {"security": []}
    schema = page("For BentoML's client", {"application/json": {"schema": {"type": "object"}}}, *COMMON)
    return {
        "/metrics": {"get": page("For Prometheus", TEXT) | public},
        "/schema.json": {"get": schema},
    }


def _complete(responses: Object, needs_key: bool) -> None:
    """Add what the edge does to every answer: its headers, 401 and no 422."""
    responses.pop("422", None)  # it becomes 400
    if needs_key:
        responses["401"] = {"description": WHY[401], "content": ERROR}
    for status, response in responses.items():
        names = ["X-Request-Id", *([SENT_WITH[status]] if status in SENT_WITH else [])]
        response["headers"] = response.get("headers", {}) | {name: HEADERS[name] for name in names}
