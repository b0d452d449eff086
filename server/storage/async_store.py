"""A store's verbs for the event loop, in threads of their own: a store that hangs keeps nobody waiting but who asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from registry.errors import FlexiError, StoreUnavailable
from registry.stores.base import ObjectStore, Stored

T = TypeVar("T")

THREADS = 8
WAITING = 64  # questions asked and not answered; the next one is refused
SECONDS = 30.0  # until a question counts as unanswered; its thread stays taken until the store's own patience ends


class AsyncStore:
    """`ObjectStore` with `await`. Each verb may raise `StoreUnavailable`, also where the store does not answer in time.

    One event loop's own. Who gives up waiting for a write does not know whether it was done.
    """

    def __init__(self, open_store: Callable[[], ObjectStore], seconds: float = SECONDS) -> None:
        """`open_store` gives the same one each time, or raises while the store is away."""
        self._open = open_store
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, "storage")
        self._asked = 0

    async def get(self, key: str) -> Stored:
        """Read an object, or raise `NotFound`."""
        return await self._ask(lambda store: store.get(key))

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has this etag (None), or raise `NotFound`."""
        return await self._ask(lambda store: store.get_if_changed(key, etag))

    async def create(self, key: str, data: bytes) -> str:
        """Write a new object and return its etag; raise `Conflict` if the key is taken."""
        return await self._ask(lambda store: store.create(key, data))

    async def swap(self, key: str, data: bytes, etag: str) -> str:
        """Replace the object that still has this etag, return the new one; `Conflict` if it differs or is missing."""
        return await self._ask(lambda store: store.swap(key, data, etag))

    async def delete(self, key: str) -> None:
        """Remove an object; one that is missing is no error."""
        await self._ask(lambda store: store.delete(key))

    async def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        return await self._ask(lambda store: [*store.list(prefix)])

    def close(self) -> None:
        """Ask nothing any more. What is under way goes on in its thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, question: Callable[[ObjectStore], T]) -> T:
        if self._asked >= WAITING:
            raise StoreUnavailable(f"{WAITING} requests wait for the store already: try again later", param="registry")
        self._asked += 1
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, partial(self._answer, question))
        except TimeoutError:
            raise StoreUnavailable(f"no answer of the store in {self._seconds:g} s", param="registry") from None
        finally:
            self._asked -= 1

    def _answer(self, question: Callable[[ObjectStore], T]) -> T:
        try:
            store = self._open()
        except FlexiError as error:  # a setting at fault, say: nothing that whoever asks could mend
            raise StoreUnavailable(error.text, param="registry") from error
        return question(store)
