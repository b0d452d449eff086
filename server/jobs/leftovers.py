"""What jobs leave in the store, and no name says when it has had its time: idempotency keys, and beats of killed workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from registry.errors import NotFound, Tampered
from server.jobs.job_store import IDEMPOTENT
from server.jobs.leases import HOLDERS
from server.jobs.record import Idempotence
from server.storage.async_store import AsyncStore
from server.storage.sweeper import GRACE, until_of
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)


class Leftovers:
    """Reads each record once, and remembers what it says."""

    def __init__(self, store: AsyncStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._untils: dict[str, int] = {}  # of idempotency keys
        self._beats: dict[str, str] = {}  # etags, as they were at the last sweep
        self._faults = Faults(log)

    async def sweep(self) -> int:
        """Remove what has had its time; how much that was. Raises `StoreUnavailable`.

        A beat that stands still from one sweep to the next is far past any lease.
        """
        return await self._sweep_idempotence() + await self._sweep_beats()

    async def _sweep_idempotence(self) -> int:
        read = {key: await self._until(key) for key in await self._store.list(IDEMPOTENT)}
        self._untils = {key: until for key, until in read.items() if until is not None}
        past = [key for key, until in self._untils.items() if until + GRACE <= self._clock()]
        for key in past:
            await self._store.delete(key)
        return len(past)

    async def _until(self, key: str) -> int | None:
        """When it has had its time; None where this version cannot read that."""
        if key in self._untils:
            return self._untils[key]
        try:
            meant = Idempotence.read(key, (await self._store.get(key)).data)
        except NotFound:  # another server has just removed it
            return 0
        except Tampered as error:
            self._faults.failed(key, f"an idempotency key is left alone: {error}")
            return None
        return until_of(meant.job_id) or 0

    async def _sweep_beats(self) -> int:
        before, self._beats, past = self._beats, {}, 0
        for key in await self._store.list(HOLDERS):
            try:
                etag = (await self._store.get(key)).etag
            except NotFound:
                continue
            if before.get(key) == etag:
                await self._store.delete(key)
                past += 1
            else:
                self._beats[key] = etag
        return past
