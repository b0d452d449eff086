"""Blocking questions, such as of the registry's store, for the event loop: bounded, and not asked twice at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from cachetools import LRUCache

from registry.errors import Overloaded, StoreUnavailable

T = TypeVar("T")

THREADS = 4  # at work at once
WAITING = 32  # questions that wait for those, or are at work; the next one is refused
SECONDS = 30.0  # until a question counts as unanswered; its thread stays taken until it ends
KEPT = 256  # answers
PATIENCE = 5.0  # times what a question took: so much of a thread's time at most goes to one that is asked all the time
BUSY_SECONDS = 1.0  # after which it is worth to ask again


@dataclass
class _Asked:
    """A question on its way or answered, and until when its answer, or its fault, is good for others."""

    answer: asyncio.Task[Any]
    since: float
    until: float

    def answered(self, now: float) -> None:
        """What took long is good for longer; a fault, which may be over in a moment, never for long."""
        faulty = self.answer.cancelled() or self.answer.exception() is not None  # nobody else may look at that
        self.until = (now + BUSY_SECONDS) if faulty else max(self.until, now + PATIENCE * (now - self.since))


class Questions:
    """One event loop's own. However many ask, a question is answered once in its time: pages that refresh cost little."""

    def __init__(self, seconds: float = SECONDS, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "operator")
        self._asked: LRUCache[Hashable, _Asked] = LRUCache(KEPT)
        self._waiting = 0

    async def kept(self, name: Hashable, seconds: float, question: Callable[[], T]) -> T:
        """The answer to the question of this name, at most so many seconds old, or as old as a few times what it took.

        Raises what the question raises.
        """
        asked, now = self._asked.get(name), self._clock()
        if asked is None or (asked.answer.done() and now >= asked.until):
            asked = _Asked(asyncio.create_task(self.fresh(question)), now, now + seconds)
            asked.answer.add_done_callback(partial(self._answered, asked))
            self._asked[name] = asked
        answer: T = await asyncio.shield(asked.answer)  # one who leaves takes it from nobody
        return answer

    async def fresh(self, question: Callable[[], T]) -> T:
        """The answer of now. Raises `Overloaded`, and `StoreUnavailable` without one in time: who asked for a change then does
        not know whether it was made."""
        if self._waiting >= WAITING:
            raise Overloaded(f"{WAITING} questions of operators wait already", retry_after=BUSY_SECONDS)
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, _ask, question)
        work.add_done_callback(self._done)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(work)
        except TimeoutError:
            message = f"no answer of the store in {self._seconds:g} s; if something was to change, look whether it did"
            raise StoreUnavailable(message, param="registry") from None

    def forget(self) -> None:
        """Something was changed: all is asked anew."""
        self._asked.clear()

    def close(self) -> None:
        """Ask nothing any more. What is under way goes on in its thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answered(self, asked: _Asked, _: asyncio.Task[Any]) -> None:
        asked.answered(self._clock())

    def _done(self, work: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            work.exception()  # nobody may be left to look at it


def _ask(question: Callable[[], T]) -> T:
    try:
        return question()
    except StopIteration as error:  # no future takes it: whoever waits for the answer would wait for ever
        raise RuntimeError("a question ended with StopIteration") from error
