"""What clients do with jobs: bring, look at, list, cancel. Each sees its own only."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from registry.document import canonical
from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, Overloaded, Unsupported
from server.access.keys import Key
from server.api import GenerateRequest
from server.errors import Cancelled
from server.jobs.job_run import JobRun
from server.jobs.job_store import JobStore
from server.jobs.record import Endpoint, Idempotence, ImageJob, JobEnd, JobOwner, new_id
from server.jobs.runner import JobRunner
from server.request_fields import BACKGROUND
from server.webhooks.addresses import checked_url

RETRY_AFTER = 30.0  # seconds, for who has too many jobs


@dataclass(frozen=True)
class JobLimits:
    """most: open jobs of one key; 0 takes none. seconds: how long one may wait and run, keep_seconds: and then is kept."""

    most: int
    seconds: int
    keep_seconds: int


class Jobs:
    """The jobs of all keys. For the event loop."""

    def __init__(
        self,
        store: JobStore,
        runner: JobRunner,
        run: JobRun,
        limits: JobLimits,
        webhooks: bool,
        private: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """webhooks: whether this server calls any; private: also at addresses that are not public."""
        self.runner = runner
        self._store = store
        self._run = run
        self._limits = limits
        self._webhooks = webhooks
        self._private = private
        self._clock = clock

    def predicted(self, alone: float, each: float, background: float) -> float:
        """Seconds until a job which takes `alone` by itself, `each` of them its MACs, should have ended if no others come.

        background: of the work in the engine. What waits in the store is taken to be like it: its records say no MACs.
        """
        return alone + background + self.runner.known.queued * each

    def new(
        self, key: Key, endpoint: Endpoint, request: GenerateRequest, webhook: str | None, wants_urls: bool, predicted: float
    ) -> ImageJob:
        """A job that is not kept yet. Its seed is drawn now, so that whoever runs it makes the same images.

        Raises `InvalidInput` for its webhook, `Overloaded` where the key has too many jobs, `Unsupported` where there are none.
        """
        if not self._limits.most:
            raise Unsupported("this server takes no jobs: FLEXI_MAX_JOBS is 0")
        if self.runner.known.count(key.name) >= self._limits.most:
            message = f"{self._limits.most} of your jobs wait or run, and that is the limit: try again when some are done"
            raise Overloaded(message, retry_after=RETRY_AFTER)
        if webhook is not None:
            if not self._webhooks:
                raise InvalidInput("this server calls none: its operator sets FLEXI_WEBHOOK_SECRET", param="webhook")
            checked_url(webhook, self._private)
        now = self._clock()
        seconds = self._limits.seconds if request.deadline_ms is None else min(self._limits.seconds, request.deadline_ms / 1000)
        until = int(now) + self._limits.seconds + self._limits.keep_seconds
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        return ImageJob(
            id=new_id(until),
            owner=JobOwner(name=key.name, macs_per_minute=key.macs_per_minute, queue_seconds=key.queue_seconds),
            endpoint=endpoint,
            request=request.model_copy(update={"priority": BACKGROUND, "seed": seed, "response_format": "b64_json"}),
            wants_urls=wants_urls,
            webhook=webhook,
            created=now,
            deadline=now + seconds,
            until=until,
            predicted_seconds=predicted,
        )

    async def add(
        self, owner: str, new: Callable[[], Awaitable[ImageJob]], idempotency: tuple[str, bytes] | None = None
    ) -> ImageJob | JobEnd:
        """Keep a new job, and return it; or the one that the same idempotency key has brought before.

        new: makes it, or raises what is wrong with it; not called for one that was brought before. idempotency: the key, and
        what was asked, in bytes. Raises `StoreUnavailable`, and `Conflict` where the key has come with something else.
        """
        if idempotency is None:
            return await self._keep(await new())
        place, digest = hashlib.sha256(idempotency[0].encode()).hexdigest(), hashlib.sha256(idempotency[1]).hexdigest()
        meant = await self._store.meant(owner, place)
        if known := meant and await self._brought(owner, meant, digest):
            return known
        job = await new()
        meant = await self._store.remember(owner, place, Idempotence(job_id=job.id, digest=digest))
        known = None if meant.job_id == job.id else await self._brought(owner, meant, digest)  # somebody was first meanwhile
        return known or await self._keep(job.model_copy(update={"id": meant.job_id}))

    async def find(self, owner: str, job_id: str) -> ImageJob | JobEnd:
        """An owner's job. Raises `NotFound`."""
        if found := await self._store.find(f"{owner}/{job_id}.json"):
            return found
        raise NotFound("there is no such job, or not any more", param="job_id")

    async def page(self, owner: str, limit: int, after: str = "") -> tuple[list[ImageJob | JobEnd], bool]:
        """An owner's jobs, the newest first, past the id `after`; and whether there are more."""
        ids, more = await self._store.page(owner, limit, after)
        found = [await self._store.find(f"{owner}/{job_id}.json") for job_id in ids]
        return [job for job in found if job], more

    async def cancel(self, owner: str, job_id: str) -> ImageJob | JobEnd:
        """End a job, wherever it runs; one that has ended stays as it is. Raises `NotFound`, `StoreUnavailable`."""
        found = await self.find(owner, job_id)
        end = found if isinstance(found, JobEnd) else await self.runner.end(self._run.failed(found, Cancelled()))
        if end.state == "cancelled":
            with suppress(FlexiError):  # it has ended: whoever comes upon its open record does the rest
                await self.runner.drop(end.job)
        return end

    async def _keep(self, job: ImageJob) -> ImageJob | JobEnd:
        try:
            added = await self._store.add(job)
        except Conflict:  # the same idempotency key, twice at once
            return await self.find(job.owner.name, job.id)
        self.runner.added(added)
        return job

    async def _brought(self, owner: str, meant: Idempotence, digest: str) -> ImageJob | JobEnd | None:
        """The job that an idempotency key means; None for one that was not kept yet, or not any more."""
        if meant.digest != digest:
            raise Conflict("it came with another job before: take a new one", param="Idempotency-Key")
        return await self._store.find(f"{owner}/{meant.job_id}.json")


def digest_of(endpoint: str, body: object, webhook: str | None) -> bytes:
    """What was asked for, in bytes that are the same for the same."""
    return canonical({"endpoint": endpoint, "body": body, "webhook": webhook})
