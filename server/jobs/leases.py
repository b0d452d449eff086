"""Who holds jobs, and who is gone. A worker that holds any writes a beat; one whose beat stands still has lost them.

No clocks are compared: each worker watches the others' beats by its own, so it does not matter what time they think it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from time import monotonic

from registry.errors import Conflict, NotFound
from server.jobs.job_store import FOLDER
from server.storage.async_store import AsyncStore

HOLDERS = f"{FOLDER}holders/"


class Lease:
    """This worker's beat. One object for all the jobs that it holds."""

    def __init__(self, store: AsyncStore) -> None:
        self.holder = secrets.token_hex(8)
        self._store = store
        self._key = f"{HOLDERS}{self.holder}.json"
        self._beats = 0
        self._etag = ""  # of the newest beat; empty where there is none, or where it is not known
        self._may_be_there = False

    async def renew(self) -> None:
        """Write the next beat. Raises `StoreUnavailable`, and `Conflict` where others remove it in this moment."""
        self._beats += 1
        self._may_be_there = True
        try:
            await self._write()
        except Conflict:  # an answer was lost; or others took it for dead, and may have its jobs: who ends one first, ends it
            self._etag = await self._found()
            await self._write()

    async def release(self) -> None:
        """Hold nothing any more."""
        if self._may_be_there:
            self._may_be_there, self._etag = False, ""
            await self._store.delete(self._key)

    async def _write(self) -> None:
        beat = b'{"beat": %d}' % self._beats
        self._etag = await (
            self._store.swap(self._key, beat, self._etag) if self._etag else self._store.create(self._key, beat)
        )

    async def _found(self) -> str:
        try:
            return (await self._store.get(self._key)).etag
        except NotFound:
            return ""


class OtherHolders:
    """The beats of other workers, as long as they matter."""

    def __init__(self, store: AsyncStore, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        """seconds: for how long a beat may stand still."""
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}  # the etag of the newest beat, and since when it stands

    async def gone(self, holders: Collection[str]) -> set[str]:
        """Those of these that hold nothing any more: without a beat, or with one that stands still, which is removed."""
        self._seen = {holder: seen for holder, seen in self._seen.items() if holder in holders}
        return {holder for holder in holders if await self._is_gone(holder)}

    async def _is_gone(self, holder: str) -> bool:
        key, now = f"{HOLDERS}{holder}.json", self._clock()
        etag, since = self._seen.get(holder, ("", now))
        try:
            beat = await self._store.get_if_changed(key, etag) if etag else await self._store.get(key)
        except NotFound:
            return True
        if beat:
            self._seen[holder] = beat.etag, now
            return False
        if now - since < self._seconds:
            return False
        await self._store.delete(key)
        return True
