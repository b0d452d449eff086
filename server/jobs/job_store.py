"""Jobs in the store. Who comes first decides: a record is made once, replaced by compare-and-swap, and ended once.

_jobs/open/OWNER/JOB.json          while there is something to do for it: to run it, or to call its webhook
_jobs/ended/OWNER/JOB.json         how it ended: create-only, so that it ends once, whoever ran it
_jobs/idempotent/OWNER/SHA256.json which job an idempotency key means
_jobs/holders/WORKER.json          the beat of a worker that holds jobs (`server.jobs.leases`)
"""

from __future__ import annotations

from typing import NamedTuple

from registry.errors import Conflict, NotFound
from server.jobs.record import Idempotence, ImageJob, JobEnd
from server.storage.async_store import AsyncStore

FOLDER = "_jobs/"  # no model can be called so: see registry.document.NAME
OPEN, ENDED, IDEMPOTENT = f"{FOLDER}open/", f"{FOLDER}ended/", f"{FOLDER}idempotent/"


class OpenJob(NamedTuple):
    """A job's record, and the etag that replaces it."""

    job: ImageJob
    etag: str


class JobStore:
    """Each verb may raise `StoreUnavailable`; those that read, `Tampered` for what this version cannot read."""

    def __init__(self, store: AsyncStore) -> None:
        self.store = store

    async def add(self, job: ImageJob) -> OpenJob:
        """Keep a new job. Raises `Conflict` for one that is there."""
        return OpenJob(job, await self.store.create(OPEN + job.place, job.document()))

    async def places(self) -> list[str]:
        """The places of all open jobs: `OWNER/JOB.json`."""
        return [key.removeprefix(OPEN) for key in await self.store.list(OPEN)]

    async def open(self, place: str) -> OpenJob | None:
        """An open job; None for one that is not."""
        try:
            stored = await self.store.get(OPEN + place)
        except NotFound:
            return None
        return OpenJob(ImageJob.read(OPEN + place, stored.data), stored.etag)

    async def again(self, was: OpenJob) -> OpenJob | None:
        """An open job as it is now: `was` itself if nothing has changed, None if it is not open any more."""
        key = OPEN + was.job.place
        try:
            stored = await self.store.get_if_changed(key, was.etag)
        except NotFound:
            return None
        return OpenJob(ImageJob.read(key, stored.data), stored.etag) if stored else was

    async def replace(self, was: OpenJob, **changes: object) -> OpenJob:
        """Change an open job. Raises `Conflict` if it is not as it was any more."""
        job = was.job.model_copy(update=changes)
        return OpenJob(job, await self.store.swap(OPEN + job.place, job.document(), was.etag))

    async def end(self, end: JobEnd) -> JobEnd:
        """Say how a job ended. Returns how it did: this very object, or another where somebody else has said it before."""
        key, said = ENDED + end.job.place, end.document()
        try:
            await self.store.create(key, said)
        except Conflict:
            first = await self.store.get(key)
            if first.data != said:  # it may have been said here, and the answer was lost
                return JobEnd.read(key, first.data)
        return end

    async def ended(self, place: str) -> JobEnd | None:
        """How a job ended; None if it has not."""
        try:
            return JobEnd.read(ENDED + place, (await self.store.get(ENDED + place)).data)
        except NotFound:
            return None

    async def close(self, job: ImageJob) -> None:
        """There is nothing to do for it any more."""
        await self.store.delete(OPEN + job.place)

    async def find(self, place: str) -> ImageJob | JobEnd | None:
        """The job, open or ended. It may end between two looks, and is never overlooked."""
        return await self.ended(place) or await self._job(place) or await self.ended(place)

    async def page(self, owner: str, limit: int, after: str = "") -> tuple[list[str], bool]:
        """Ids of an owner's jobs, the newest first, past `after`; and whether there are more."""
        keys = [key for folder in (OPEN, ENDED) for key in await self.store.list(f"{folder}{owner}/")]
        ids = sorted({key.rpartition("/")[2].removesuffix(".json") for key in keys}, reverse=True)
        rest = [job_id for job_id in ids if not after or job_id < after]
        return rest[:limit], len(rest) > limit

    async def remember(self, owner: str, sha256: str, meant: Idempotence) -> Idempotence:
        """What an idempotency key means: this, or what it was made to mean before."""
        try:
            await self.store.create(_idempotent(owner, sha256), meant.document())
        except Conflict:
            return await self.meant(owner, sha256) or meant
        return meant

    async def meant(self, owner: str, sha256: str) -> Idempotence | None:
        """What an idempotency key means; None for one that did not come before."""
        key = _idempotent(owner, sha256)
        try:
            return Idempotence.read(key, (await self.store.get(key)).data)
        except NotFound:
            return None

    async def _job(self, place: str) -> ImageJob | None:
        found = await self.open(place)
        return found and found.job


def _idempotent(owner: str, sha256: str) -> str:
    return f"{IDEMPOTENT}{owner}/{sha256}.json"
