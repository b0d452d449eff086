"""A worker of jobs without HTTP or a model: its engine makes a file of each prompt."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode

from job_records import answer

from server.access.keys import ANONYMOUS
from server.api import GenerateRequest
from server.jobs.job_run import JobRun
from server.jobs.job_store import JobStore
from server.jobs.jobs import JobLimits, Jobs
from server.jobs.leases import OtherHolders
from server.jobs.record import ImageJob, JobEnd
from server.jobs.runner import JobRunner
from server.storage.async_store import AsyncStore
from server.storage.kept_files import KeptFiles

LIMITS = JobLimits(most=3, seconds=3600, keep_seconds=3600)


class Hooks:
    """Delivers webhooks when it `may`, and keeps what it delivered: URL, job, and how that ended."""

    def __init__(self, may=True):
        self.calls: list[tuple[str, str, str]] = []
        self.may = asyncio.Event()
        if may:
            self.may.set()

    async def deliver(self, url, end):
        await self.may.wait()
        self.calls.append((url, end.job.id, end.state))
        return True


class Worker:
    """One of several over a store. Its engine makes a file of each prompt, or does what `engine` does."""

    def __init__(self, store, *, together=4, webhooks=None, clock=time.time, limits=LIMITS, serves=lambda _: True):
        self.asked: list[GenerateRequest] = []
        self.engine = self.make
        self.running = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        own = AsyncStore(lambda: store)
        run = JobRun(self.generate, KeptFiles(own, clock), clock)
        self.runner = JobRunner(JobStore(own), run, webhooks, together, 30.0, clock, serves)
        self.jobs = Jobs(JobStore(own), self.runner, run, limits, webhooks is not None, private=True, clock=clock)

    async def generate(self, request, context, gone):
        gone.close()
        self.asked.append(request)
        self.running.set()
        await self.go.wait()
        return await self.engine(request, context)

    async def make(self, request, context):
        return answer(request, context.request_id, [b64encode(request.prompt.encode()).decode()])

    def fails(self, *errors):
        """With these errors, one after the other; None is no error, and so is what comes after them."""
        left = [*errors]

        async def engine(request, context):
            if left and (error := left.pop(0)):
                raise error
            return await self.make(request, context)

        self.engine = engine

    async def bring(self, prompt="x", key=ANONYMOUS, webhook=None, idempotency=None, **fields) -> ImageJob | JobEnd:
        async def new():
            return self.jobs.new(key, "/generate", GenerateRequest(prompt=prompt, **fields), webhook, True, 1.0)

        return await self.jobs.add(key.name, new, idempotency)

    async def turn(self):
        await self.runner.look()
        await self.runner.fill()

    async def end_of(self, kept: ImageJob) -> JobEnd:
        """Its end, while this worker goes on looking for work."""
        for _ in range(1000):
            await self.turn()
            found = await self.jobs.find(kept.owner.name, kept.id)
            if isinstance(found, JobEnd) and kept.place not in self.runner._running:
                return found
            await asyncio.sleep(0.002)
        raise AssertionError("it does not end")

    async def die(self):
        """As a killed process does: nothing is said to anybody."""
        tasks = [*self.runner._running.values(), *self.runner._delivering.values(), self.runner._beat]
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.sleep(0)


def takes_the_rest(worker: Worker) -> Worker:
    """One that takes a beat that stands still between two looks for a death."""
    worker.runner._others = OtherHolders(worker.runner._store.store, 0.0)
    return worker
