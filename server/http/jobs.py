"""Jobs: requests whose images are fetched later. `POST /v1/jobs` takes what the two routes that make images take."""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request

from registry.document import first_fault
from registry.errors import InvalidInput, NotFound
from server.access.keys import ANONYMOUS, Key
from server.api import ErrorBody, GenerateRequest, GenerateResponse
from server.app import App
from server.http import openai
from server.http.context import Context
from server.http.documents import COMMON, UNIT, errors
from server.http.files import url_of
from server.http.job_request import JobRequest
from server.http.opening import loaded_app
from server.http.unit import unit_of
from server.jobs.jobs import digest_of
from server.jobs.record import JOB_ID, Endpoint, ImageJob, JobEnd
from server.request_fields import BACKGROUND

router = APIRouter(prefix="/v1/jobs")
IDEMPOTENCY = "Idempotency-Key"
IDEMPOTENCY_PATTERN = r"^([!-~][ -~]{0,254})?$"
MAX_PAGE = 100
HEADERS: dict[str, Any] = {  # for the `openapi_extra` of the route that takes jobs
    "parameters": [
        *UNIT["parameters"],
        {
            "name": IDEMPOTENCY,
            "in": "header",
            "description": "The same one never makes a second job: it is answered with the first.",
            "schema": {"type": "string", "pattern": IDEMPOTENCY_PATTERN},
        },
    ]
}
LOCATION = {"Location": {"description": "Of the job.", "required": True, "schema": {"type": "string"}}}
KEPT: dict[int | str, dict[str, Any]] = {202: {"description": "The job is kept", "headers": LOCATION}}


class JobView(BaseModel):
    """A job. Times are Unix times in seconds."""

    id: str
    object: Literal["job"] = "job"
    endpoint: Endpoint
    state: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    created_at: int
    started_at: Annotated[int | None, Field(description="When it was begun last; a server that ends gives its jobs to others.")]
    ended_at: int | None
    expires_at: Annotated[int, Field(description="When the job and its images are gone.")]
    predicted_seconds: Annotated[float, Field(description="Until it should have ended, said when it came, if no others come.")]
    webhook: str | None
    error: Annotated[ErrorBody | None, Field(description="Why it did not succeed; `request_id` is the job's id.")] = None
    result: Annotated[
        GenerateResponse | openai.ImagesAnswer | None,
        Field(description="What the endpoint would have answered, of a job that succeeded; a list of jobs leaves it out."),
    ] = None


class JobsView(BaseModel):
    """Jobs of an API key, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    has_more: Annotated[bool, Field(description="Whether older ones follow: ask again with `after`, the last one's id.")]


LoadedApp = Annotated[App, Depends(loaded_app)]
JobId = Annotated[str, Path(pattern=JOB_ID)]


@router.post(
    "",
    status_code=202,
    responses=KEPT | errors(*COMMON, 400, 403, 404, 408, 409, 413, 415, 429),
    openapi_extra=HEADERS,
)
async def add_job(body: JobRequest, request: Request, response: Response, app: LoadedApp, context: Context) -> JobView:
    """Have images made when there is nothing more urgent, even if this connection or this server ends."""
    key = context.key or ANONYMOUS
    idempotency = request.headers.get(IDEMPOTENCY)
    if idempotency is not None and not re.fullmatch(IDEMPOTENCY_PATTERN, idempotency):
        raise InvalidInput("at most 255 printable ASCII characters", param=IDEMPOTENCY)

    async def new() -> ImageJob:
        wanted, wants_urls = _wanted(app, body, request)
        predicted = await _predicted(app, wanted, context.request_id, key)
        return app.jobs.new(key, body.endpoint, wanted, body.webhook, wants_urls, predicted)

    asked = (idempotency, digest_of(body.endpoint, body.body, body.webhook)) if idempotency else None
    kept = await app.jobs.add(key.name, new, asked)
    view = await _view(app, request, kept)
    response.headers["Location"] = f"{router.prefix}/{view.id}"
    return view


@router.get("", responses=errors(400, *COMMON))
async def list_jobs(
    request: Request,
    app: LoadedApp,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str, Query(pattern=f"{JOB_ID}|^$")] = "",
) -> JobsView:
    """The jobs of this API key, the newest first."""
    found, more = await app.jobs.page((context.key or ANONYMOUS).name, limit, after)
    return JobsView(data=[_outline(job) for job in found], has_more=more)


@router.get("/{job_id}", responses=errors(400, 404, *COMMON))
async def find_job(job_id: JobId, request: Request, app: LoadedApp, context: Context) -> JobView:
    """How far a job is, and its images, if it is done. Jobs of other API keys are not found."""
    return await _view(app, request, await app.jobs.find((context.key or ANONYMOUS).name, job_id))


@router.delete("/{job_id}", responses=errors(400, 404, *COMMON))
async def cancel_job(job_id: JobId, request: Request, app: LoadedApp, context: Context) -> JobView:
    """Cancel a job, wherever it runs. One that has ended stays as it is."""
    return await _view(app, request, await app.jobs.cancel((context.key or ANONYMOUS).name, job_id))


def _wanted(app: App, job: JobRequest, request: Request) -> tuple[GenerateRequest, bool]:
    """The images that a job is for, and whether URLs are wanted, as they are where it does not say. Raises `InvalidInput`."""
    most = app.settings.max_images
    try:
        if job.endpoint == "/generate":
            plain = GenerateRequest.model_validate(job.body)
            if plain.image is not None:
                raise InvalidInput("a job starts from no image: POST /generate with priority background does", param="image")
            served = app.served(plain.model)
            if plain.num_images > most:
                raise InvalidInput(f"Input should be less than or equal to {most}", param="num_images")
            unit = unit_of(plain.unit, request.headers)
            return plain.model_copy(update={"unit": unit, "priority": BACKGROUND, "model": served.name}), job.body.get(
                "response_format"
            ) != "b64_json"
        asked = openai.ImagesRequest.model_validate(job.body)
        if asked.stream:
            raise InvalidInput("a job has no stream", param="stream")
        served = app.served(asked.model)
        wanted = asked.generate_request(served.names, served.schedules.names(), most, request.headers)
        return wanted.model_copy(update={"priority": BACKGROUND, "model": served.name}), asked.response_format != "b64_json"
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(fault.text, param=_inside(fault.param)) from None
    except (InvalidInput, NotFound) as error:
        raise type(error)(error.text, param=_inside(error.param)) from None


async def _predicted(app: App, wanted: GenerateRequest, request_id: str, key: Key) -> float:
    """Seconds until such a job should have ended. Raises what is wrong with it, before anybody relies on it."""
    served = app.served(wanted.model)
    try:
        plan = await served.generation.planner.plan(wanted, request_id, key)
    except (InvalidInput, NotFound) as error:
        raise type(error)(error.text, param=_inside(error.param)) from None
    admission = served.admission
    return app.jobs.predicted(plan.predicted, plan.macs * admission.seconds_per_mac, admission.background_seconds)


def _inside(param: str | None) -> str:
    return f"body.{param}" if param else "body"


def _outline(kept: ImageJob | JobEnd) -> JobView:
    """A job without its result."""
    end = kept if isinstance(kept, JobEnd) else None
    job = kept.job if isinstance(kept, JobEnd) else kept
    return JobView(
        id=job.id,
        endpoint=job.endpoint,
        state=end.state if end else job.state,
        created_at=int(job.created),
        started_at=None if job.started is None else int(job.started),
        ended_at=int(end.ended) if end else None,
        expires_at=job.until,
        predicted_seconds=round(job.predicted_seconds, 3),
        webhook=job.webhook,
        error=end.error if end else None,
    )


async def _view(app: App, request: Request, kept: ImageJob | JobEnd) -> JobView:
    """A job with its result. Raises `StoreUnavailable`, as its images may have to be read."""
    view = _outline(kept)
    if not isinstance(kept, JobEnd) or kept.result is None:
        return view
    if kept.job.wants_urls:
        update: dict[str, Any] = {"images": [url_of(app, request, file_id) for file_id in kept.files]}
        update["expires_at"] = kept.job.until
    else:
        update = {"images": [b64encode((await app.files.read(file_id)).data).decode() for file_id in kept.files]}
    made = kept.result.model_copy(update=update)
    result = made if kept.job.endpoint == "/generate" else openai.answer(made, kept.job.wants_urls, int(kept.ended))
    return view.model_copy(update={"result": result})
