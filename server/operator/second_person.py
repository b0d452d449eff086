"""What operators are shown of promotions that take a second person."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

from registry.approvals.approvals import OpenRequest
from registry.records import Digest


class RequestView(BaseModel):
    """A promotion that waits for a second person."""

    id: Annotated[str, Field(description="What approves it: POST /v1/operator/requests/{id}/approve.")]
    tier: str
    version: int
    digest: Digest
    author: str
    reason: str
    time: AwareDatetime
    until: Annotated[AwareDatetime, Field(description="From then on it is stale, as it is once the tier has moved.")]
    voices: Annotated[list[str], Field(description="Who speaks for it already: they cannot approve it.")]


class SecondPersonView(BaseModel):
    """The tiers that take a second person to promote, and what waits for one."""

    tiers: list[str]
    requests: list[RequestView]


def request_view(waiting: OpenRequest) -> RequestView:
    """A request as operators are shown it."""
    request = waiting.request
    return RequestView(
        id=request.id,
        tier=request.tier,
        version=request.target.version,
        digest=request.target.digest,
        author=request.author,
        reason=request.reason,
        time=request.time,
        until=request.until,
        voices=[voice.author for voice in waiting.voices],
    )
