"""Removal of what has had its time, where the names of objects say when that is."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from registry.errors import FlexiError
from server.storage.async_store import AsyncStore
from server.telemetry import metrics
from server.telemetry.faults import Faults

log = logging.getLogger(__name__)

PAUSE = 300.0  # seconds between two looks, a fifth more or less
GRACE = 300.0  # seconds: clocks of other servers may be behind
_NAME = re.compile(r"(?:job-)?([0-9a-f]{8})[^/]*")


class Sweeper:
    """Looks through folders of the store, and deletes. Several servers may do it at once: what is missing is no error."""

    def __init__(
        self,
        store: AsyncStore,
        folders: Sequence[str],
        others: Sequence[Callable[[], Awaitable[int]]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """In these folders (prefixes that end in `/`) names say when they are gone: see `until_of`. others: swept besides."""
        self._store = store
        self._folders = folders
        self._others = others
        self._clock = clock
        self._faults = Faults(log)

    async def follow(self) -> None:
        """Sweep for ever. What fails is logged, and tried again the next time."""
        while True:
            await asyncio.sleep(PAUSE * random.uniform(0.8, 1.2))
            try:
                await self.sweep()
            except FlexiError as error:
                self._faults.failed("store", f"what has had its time stays in the store: {error}")
            except Exception:
                log.exception("sweeping failed")
            else:
                self._faults.mended("store")

    async def sweep(self) -> int:
        """Delete what is past its time; returns how much that was. Raises `StoreUnavailable`."""
        removed = 0
        for folder in self._folders:
            for key in await self._store.list(folder):
                if self._is_past(key):
                    await self._store.delete(key)
                    removed += 1
        removed += sum([await other() for other in self._others])
        metrics.swept_objects_total.inc(removed)
        return removed

    def _is_past(self, key: str) -> bool:
        until = until_of(key.rpartition("/")[2])
        return until is not None and until + GRACE <= self._clock()


def until_of(name: str) -> int | None:
    """The Unix time with which a name begins, in eight hex digits, maybe after `job-`; None for any other name."""
    said = _NAME.fullmatch(name)
    return int(said[1], 16) if said else None
