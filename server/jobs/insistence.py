"""While the store is away, what became of a job waits in memory: what it has cost is spent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from registry.errors import StoreUnavailable
from server.jobs.record import ImageJob
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 2.0


class Insistence:
    """Tries work on the store until it is done."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._faults = Faults(log)

    async def insist(self, job: ImageJob, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the work. Raises `StoreUnavailable` when the job's records would be gone."""
        while True:
            try:
                done = await work()
            except StoreUnavailable as error:
                if self._clock() >= job.until:
                    raise
                self._faults.failed("store", f"what became of jobs waits in memory, the store does not take it: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._faults.mended("store")
                return done
