"""Runs jobs: takes open ones from the store, has their images made as background work, says in the store how they ended.

A worker claims a job by compare-and-swap. A claim whose answer was lost is taken up at the next look, which finds this worker's
name on a job that it is not at. If a worker dies, its beat stands still (`server.jobs.leases`), and another one, or the
same server after a restart, claims the job again. A job ends by a record that is made once; of two workers that both believe in
their claim, one ends it, and the other's images are thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic

from registry.errors import Conflict, FlexiError, Overloaded, StoreUnavailable, Tampered
from server.errors import GenerationFailed, NotReady
from server.jobs.insistence import Insistence
from server.jobs.job_run import JobRun
from server.jobs.job_store import JobStore, OpenJob
from server.jobs.leases import Lease, OtherHolders
from server.jobs.open_jobs import OpenJobs
from server.jobs.record import ImageJob, JobEnd
from server.jobs.webhooks import WebhookSender, not_delivered
from server.telemetry import metrics
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # workers that may die on a job before it counts as the job's fault
BEATS = 3  # in the time of a lease
CLOSE_SECONDS = 5.0  # for giving back what this worker holds
READ_AGAIN = 8  # others' jobs at most in a look: what it costs is bounded, and of many each has its turn
RETRY_SECONDS = 2.0  # after something here could not serve a job, and did not say when it can
MODEL_SECONDS = 30.0  # after a model could not serve a job: as long as a failed one waits for its next load


class JobRunner:
    """One worker's part of the jobs. For the event loop."""

    def __init__(
        self,
        store: JobStore,
        run: JobRun,
        webhooks: WebhookSender | None,
        together: int,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
        serves: Callable[[str | None], bool] = lambda _: True,
    ) -> None:
        """together: jobs that run here at once at most. lease_seconds: until a worker without a beat has lost its jobs.

        serves: whether a job's model is one of those here.
        """
        self._serves = serves
        self.known = OpenJobs(clock)
        self._store = store
        self._run = run
        self._webhooks = webhooks
        self._together = together
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lease = Lease(store.store)
        self._others = OtherHolders(store.store, lease_seconds)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._delivering: dict[str, asyncio.Task[None]] = {}
        # Who is at none of the jobs that name it, but for those in hand here; by the last look.
        self._lost = {self._lease.holder}
        self._wake = asyncio.Event()
        self._holding = asyncio.Lock()  # while it is decided whether this worker holds anything
        self._beat: asyncio.Task[None] | None = None
        self._faults = Faults(log)
        self._insistence = Insistence(clock)

    async def follow(self, seconds: float) -> None:
        """Look for work for ever, with pauses of so many seconds, or as soon as there is something new here."""
        next_look = monotonic()
        while True:
            try:
                if monotonic() >= next_look:
                    next_look = monotonic() + seconds * random.uniform(0.8, 1.2)
                    await self.look()
                await self.fill()
            except FlexiError as error:
                self._faults.failed("store", f"jobs wait, the store cannot be read or written: {error}")
            except Exception:
                log.exception("looking for jobs failed")
            else:
                self._faults.mended("store")
            self.known.export()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_look - monotonic())):
                    await self._wake.wait()
            self._wake.clear()

    def added(self, job: OpenJob) -> None:
        """A client has just brought this one."""
        self.known.put(job)
        self._wake.set()

    async def look(self) -> None:
        """Read what is new, stop what others have ended, see who is gone. Raises `StoreUnavailable`."""
        before = self.known.places() | self._running.keys()
        listed = set(await self._store.places())
        for place in before - listed:  # what was added meanwhile may not be listed yet
            self.known.forget(place)
            if task := self._running.get(place):
                task.cancel()
        held = [known for known in self.known if known.job.holder and known.job.holder not in self._lost]
        for place in listed - self.known.places():
            await self._read(place)
        for known in held[:READ_AGAIN]:  # whoever holds one may have given it back, which no listing shows
            await self._read(known.job.place, known)
        for job in [known.job for known in self.known if known.job.webhook and known.job.place in self._running]:
            with suppress(Tampered):
                if (end := await self._store.ended(job.place)) and end.state == "cancelled":  # it is open for its webhook
                    await self.drop(job)
        others = {known.job.holder for known in self.known if known.job.holder} - {self._lease.holder}
        self._lost = {self._lease.holder} | await self._others.gone(others)

    async def fill(self) -> None:
        """Claim as many jobs as there is room for, and those whose time is over. Raises `StoreUnavailable`."""
        for overdue in self.known.overdue(self._in_hand, self._lost):
            await self._claim(overdue)
        while len(self._running) < self._together:
            known = self.known.next(self._in_hand, self._lost, self._serves)
            if known is None:
                return
            await self._claim(known)

    async def end(self, end: JobEnd) -> JobEnd:
        """Say how a job ended; returns how it did, if somebody has said that before. Raises `StoreUnavailable`."""
        said = await self._store.end(end)
        if said is end:
            self._count(end)
        return said

    async def drop(self, job: ImageJob) -> None:
        """Make nothing more for a job that was cancelled, and close it. Raises `StoreUnavailable`.

        Where its webhook is owed, whoever holds it will close it: this worker, if nobody does.
        """
        if task := self._running.get(job.place):
            task.cancel()
            await asyncio.wait([task])
        if not job.webhook:
            await self._store.close(job)
            self.known.forget(job.place)
        elif (known := await self._store.open(job.place)) and known.job.holder in (None, self._lease.holder):
            await self._claim(known)

    async def close(self) -> None:
        """Give back what is not done, for others to begin at once, as far as the store takes it in a few seconds."""
        for task in (*self._running.values(), *self._delivering.values()):
            task.cancel()
        if self._beat:
            self._beat.cancel()
        with suppress(TimeoutError, FlexiError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for place in [*self._running]:
                    known = await self._store.open(place)
                    if known and known.job.holder == self._lease.holder:  # else others took this worker for dead
                        await self._give_back(known)
                await self._lease.release()

    @property
    def _in_hand(self) -> set[str]:
        """Places of the jobs that this worker is at."""
        return {*self._running, *self._delivering}

    async def _read(self, place: str, was: OpenJob | None = None) -> None:
        """was: as it is known here."""
        try:
            if known := await (self._store.again(was) if was else self._store.open(place)):
                self.known.put(known)
        except Tampered as error:
            self._leave_alone(place, error)

    def _leave_alone(self, place: str, error: FlexiError) -> None:
        """Until the next look, which finds it again."""
        self._faults.failed(place, f"a job is left alone: {error}")
        self.known.forget(place)

    async def _claim(self, known: OpenJob) -> None:
        """Take a job in hand, whatever is left to do for it."""
        job, place = known.job, known.job.place
        async with self._holding:
            if place in self._in_hand:
                return
            if self._beat is None:
                await self._lease.renew()
                self._beat = asyncio.create_task(self._keep_beating())
            attempts = job.attempts + (job.holder != self._lease.holder)
            try:
                claimed = await self._store.replace(
                    known, state="running", holder=self._lease.holder, attempts=attempts, started=self._clock()
                )
            except Conflict:  # it is somebody else's, or over, or an answer was lost and it is ours: the next look tells
                self.known.forget(place)
                return
            self.known.put(claimed)
            log.info("job begun", extra={"fields": {"job": job.id, "key": job.owner.name, "attempts": attempts}})
            self._running[place] = asyncio.create_task(self._work(claimed))
            self._running[place].add_done_callback(lambda _: self._left(place))

    def _left(self, place: str) -> None:
        self._running.pop(place, None)
        self._wake.set()

    async def _work(self, claimed: OpenJob) -> None:
        """Whatever is left to do for a job."""
        job = claimed.job
        try:
            # It was cancelled, or a worker died after it said so.
            end = await self._insistence.insist(job, partial(self._store.ended, job.place))
            if end is None and (made := await self._made(claimed)):
                end = await self._insistence.insist(job, partial(self.end, made))
            if end:
                await self._conclude(end)
        except FlexiError as error:  # this version cannot read how it ended
            self._leave_alone(job.place, error)
        except Exception:
            log.exception("a job is left alone", extra={"fields": {"job": job.id}})
            self.known.forget(job.place)

    async def _made(self, claimed: OpenJob) -> JobEnd | None:
        """How it ends here; None for one that was given back."""
        job = claimed.job
        try:
            if job.attempts > MAX_ATTEMPTS:
                raise GenerationFailed(f"{MAX_ATTEMPTS} workers ended while they were at this job")
            return await self._run(job)
        except (NotReady, StoreUnavailable, Overloaded) as error:  # not the job's fault
            of_model = isinstance(error, NotReady) and error.param == "model"
            seconds = MODEL_SECONDS if of_model else getattr(error, "retry_after", RETRY_SECONDS)
            self.known.pause(job.owner.name, seconds, job.request.model if of_model else None)
            await self._insistence.insist(job, partial(self._give_back, claimed))
            return None
        except FlexiError as error:
            return self._run.failed(job, error)
        except Exception:
            log.exception("a job failed", extra={"fields": {"job": job.id}})
            return self._run.failed(job, FlexiError("internal error"))

    async def _conclude(self, end: JobEnd) -> None:
        """What is left to do when it is said how a job ended."""
        if end.job.webhook and self._webhooks:
            self._deliver(end, self._webhooks)
        else:
            if end.job.webhook:  # a server that calls some took the job
                not_delivered(end, "FLEXI_WEBHOOK_SECRET is not set here")
            await self._insistence.insist(end.job, partial(self._store.close, end.job))
        self.known.forget(end.job.place)

    async def _give_back(self, known: OpenJob) -> None:
        """Let anybody begin the job anew."""
        try:
            self.known.put(await self._store.replace(known, state="queued", holder=None, attempts=known.job.attempts - 1))
        except Conflict:  # others took this worker for dead, or an answer was lost and it is done
            self.known.forget(known.job.place)

    def _deliver(self, end: JobEnd, webhooks: WebhookSender) -> None:
        """Beside everything else, for it may take an hour. The job stays open, so that whoever finds it dead goes on."""
        place = end.job.place

        async def deliver() -> None:
            try:
                await webhooks.deliver(str(end.job.webhook), end)
            except Exception:
                log.exception("a webhook was not called", extra={"fields": {"job": end.job.id}})
            with suppress(StoreUnavailable):  # until there is nothing to close any more
                await self._insistence.insist(end.job, partial(self._store.close, end.job))
            self.known.forget(place)

        task = self._delivering[place] = asyncio.create_task(deliver())
        task.add_done_callback(lambda _: self._delivering.pop(place, None))

    async def _keep_beating(self) -> None:
        """While this worker holds anything. A beat that the store does not take is tried again with the next one."""
        while True:
            await asyncio.sleep(self._lease_seconds / BEATS)
            with suppress(FlexiError):
                await self._lease.renew()
            if not (self._running or self._delivering):
                async with self._holding:
                    if not (self._running or self._delivering):
                        self._beat = None
                        with suppress(FlexiError):
                            await self._lease.release()
                        return

    def _count(self, end: JobEnd) -> None:
        job, seconds = end.job, end.ended - end.job.created
        metrics.job_seconds.labels(end.state).observe(max(0.0, seconds))
        fields: dict[str, object] = {"job": job.id, "key": job.owner.name, "state": end.state, "seconds": round(seconds, 3)}
        if end.error:
            fields["code"] = end.error.code
        if end.result:
            fields |= {"tier": end.result.tier, "schedule": end.result.schedule, "macs": end.result.macs}
        log.info("job", extra={"fields": fields | {"attempts": job.attempts}})
