"""A job as the store keeps it: one record while it is open, and one for ever after, until both have had their time."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import Field

from registry.document import Document
from registry.records import Record
from server.access.keys import Key
from server.api import ErrorBody, GenerateRequest, GenerateResponse

JOB_ID = r"^job-[0-9a-f]{32}$"
Endpoint = Literal["/generate", "/v1/images/generations"]
OpenState = Literal["queued", "running"]
EndState = Literal["succeeded", "failed", "cancelled", "expired"]


def new_id(until: int) -> str:
    """The id of a job whose records are gone after this Unix time: sweepers read it there, and ids sort by age."""
    return f"job-{until:08x}{secrets.token_hex(12)}"


class JobOwner(Document):
    """Whose a job is: an API key's name, and what it may use, as it was when the job came."""

    name: str
    macs_per_minute: int | None = None
    queue_seconds: float | None = None

    @property
    def key(self) -> Key:
        """As quotas and queues know it."""
        return Key(self.name, self.macs_per_minute, self.queue_seconds)


class ImageJob(Record):
    """An open job. Times are Unix times in seconds.

    deadline: when it is over without being done. until: when all that is kept of it is gone. holder: which worker runs it, or
    has its webhook to call. attempts: how many workers have begun it.
    """

    id: Annotated[str, Field(pattern=JOB_ID)]
    owner: JobOwner
    endpoint: Endpoint
    request: GenerateRequest
    wants_urls: bool = True
    webhook: str | None = None
    created: float
    deadline: float
    until: int
    predicted_seconds: float
    state: OpenState = "queued"
    holder: str | None = None
    started: float | None = None
    attempts: int = 0

    @property
    def place(self) -> str:
        """What its keys in the store end in: keys of other owners never meet it."""
        return f"{self.owner.name}/{self.id}.json"


class JobEnd(Record):
    """How a job ended; written once, by whoever was first. result: as `/generate` answers it; `files` are its images' ids."""

    job: ImageJob
    state: EndState
    ended: float
    error: ErrorBody | None = None
    result: GenerateResponse | None = None
    files: tuple[str, ...] = ()


class Idempotence(Record):
    """Which job an idempotency key of an owner means, and the digest of what was asked with it."""

    job_id: Annotated[str, Field(pattern=JOB_ID)]
    digest: str
