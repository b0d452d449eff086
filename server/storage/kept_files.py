"""Image files that are kept for a while, so that an answer can name them by URL."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from registry.errors import NotFound, StoreUnavailable
from server.request_fields import FileFormat
from server.storage.async_store import AsyncStore

FOLDER = "_files/"  # no model can be called so: see registry.document.NAME
FILE_ID = r"^[0-9a-f]{40}\.(png|jpeg|webp)$"
TRUSTED_SECONDS = 10.0  # after a write, how long the store is taken to be there


@dataclass(frozen=True)
class KeptFile:
    """A file as it was kept, and the Unix time at which it is gone."""

    data: bytes
    media_type: str
    until: int


class KeptFiles:
    """Files in the store, one object each. Their id is when they are gone, and 128 random bits: who knows it may read the file.

    No record stands beside a file: readers and sweepers learn everything from its name.
    """

    def __init__(self, store: AsyncStore, clock: Callable[[], float] = time.time, public: AsyncStore | None = None) -> None:
        """clock: Unix time in seconds. public: what clients without a key read from: a flood of them delays only them."""
        self._store = store
        self._public = public or store
        self._clock = clock
        self._written = -math.inf  # by the monotonic clock

    async def check(self) -> None:
        """Raise `StoreUnavailable` unless the store takes a file now, before anybody spends MACs on one.

        A write that was taken lately is proof enough; else one is tried.
        """
        if monotonic() < self._written + TRUSTED_SECONDS:
            return
        trial = f"{FOLDER}{int(self._clock()):08x}{secrets.token_hex(16)}.trial"
        await self._store.create(trial, b"")
        self._written = monotonic()
        with suppress(StoreUnavailable):  # credentials may write and not delete: then the bucket's own rule removes it
            await self._store.delete(trial)

    async def keep(self, data: bytes, output_format: FileFormat, until: int) -> str:
        """Keep a file until this Unix time; returns its id. Raises `StoreUnavailable`."""
        file_id = f"{until:08x}{secrets.token_hex(16)}.{output_format}"
        await self._store.create(FOLDER + file_id, data)
        self._written = monotonic()
        return file_id

    async def read(self, file_id: str) -> KeptFile:
        """Raises `NotFound` for a file that is gone, or never was, and `StoreUnavailable`."""
        until = self.until(file_id)
        try:
            data = (await self._public.get(FOLDER + file_id)).data
        except NotFound:
            raise _gone() from None
        return KeptFile(data, f"image/{file_id.rpartition('.')[2]}", until)

    def until(self, file_id: str) -> int:
        """When the file is gone, in Unix time. Raises `NotFound` where that is past, or this is no file's id."""
        if not re.fullmatch(FILE_ID, file_id) or (until := int(file_id[:8], 16)) <= self._clock():
            raise _gone()
        return until


def _gone() -> NotFound:
    return NotFound("there is no such file, or not any more", param="file_id")
