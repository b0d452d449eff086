"""One job's images, from its record to how it ended."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from registry.errors import FlexiError
from server.api import ErrorBody, GenerateRequest, GenerateResponse
from server.errors import Cancelled, DeadlineExceeded
from server.jobs.insistence import Insistence
from server.jobs.record import EndState, ImageJob, JobEnd
from server.requests.context import RequestContext
from server.storage.kept_files import KeptFiles

ENDS: dict[type[FlexiError], EndState] = {Cancelled: "cancelled", DeadlineExceeded: "expired"}


class GenerateImages(Protocol):
    """What a job needs of `Generation`."""

    async def __call__(
        self, request: GenerateRequest, context: RequestContext, gone: Coroutine[Any, Any, None]
    ) -> GenerateResponse:
        """The images in base64. Raises members of `FlexiError`."""


class JobRun:
    """Has a job's images made, and keeps their files."""

    def __init__(self, generate: GenerateImages, files: KeptFiles, clock: Callable[[], float] = time.time) -> None:
        self._generate = generate
        self._files = files
        self._clock = clock
        self._insistence = Insistence(clock)

    async def __call__(self, job: ImageJob) -> JobEnd:
        """How it ended, by success. Raises what `generate` raises; while the store is away, files wait in memory."""
        left = job.deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded("the job's time was over before it could run", param="deadline_ms")
        context = RequestContext(job.id, key=job.owner.key, limit=left)
        request = job.request
        if request.deadline_ms:
            request = request.model_copy(update={"deadline_ms": max(1, round(1000 * left))})
        made = await self._generate(request, context, _never())
        keep = self._files.keep
        files = [
            await self._insistence.insist(job, partial(keep, b64decode(image), made.output_format, job.until))
            for image in made.images
        ]
        result = made.model_copy(update={"images": []})
        return JobEnd(job=job, state="succeeded", ended=self._clock(), result=result, files=tuple(files))

    def failed(self, job: ImageJob, error: FlexiError) -> JobEnd:
        """How it ended, by this error."""
        said = ErrorBody(code=error.code, message=error.message, param=error.param, request_id=job.id)
        return JobEnd(job=job, state=ENDS.get(type(error), "failed"), ended=self._clock(), error=said)


async def _never() -> None:
    """No client that could leave."""
    await asyncio.Event().wait()
