"""Jobs as the store keeps them."""

from __future__ import annotations

import time

from server.api import ErrorBody, GenerateRequest, GenerateResponse, Steps
from server.jobs.record import EndState, ImageJob, JobEnd, JobOwner, new_id
from server.request_fields import BACKGROUND


def job(owner: str = "anna", **fields: object) -> ImageJob:
    """A queued one that has an hour."""
    now = time.time()
    request = GenerateRequest(prompt="a secret wish", tier="fast", seed=1, priority=BACKGROUND)
    until = int(now) + 7200
    whole = {"id": new_id(until), "owner": JobOwner(name=owner), "endpoint": "/generate", "request": request, "created": now}
    whole |= {"deadline": now + 3600, "until": until, "predicted_seconds": 1.0}
    return ImageJob.model_validate(whole | fields)


def ended(state: EndState, **fields: object) -> JobEnd:
    """One that ended so."""
    error = None if state == "succeeded" else ErrorBody(code="generation_failed", message="no", param=None, request_id="x")
    return JobEnd(job=job(**fields), state=state, ended=time.time(), error=error)


def answer(request: GenerateRequest, request_id: str, images: list[str]) -> GenerateResponse:
    """What the images of a request cost, made up."""
    return GenerateResponse(
        images=images,
        output_format=request.output_format,
        size="8x8",
        request_id=request_id,
        model="tiny",
        tier=request.tier,
        schedule="0" * 64,
        version=1,
        seed=request.seed or 0,
        macs=10,
        macs_per_image=10,
        relative_cost=0.5,
        steps=Steps(full=1, partial=0, null=0),
        predicted_ms=1.0,
        queue_ms=1.0,
        denoise_ms=1.0,
    )
