"""Looks at the registry, in threads of their own: a store that hangs keeps nobody waiting who needs the event loop's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

JITTER = 0.2  # of a pause, either way: servers that started together do not ask together for ever

# Of all models, as all ask the same store. What hangs takes no other thread.
_threads = ThreadPoolExecutor(8, "looks")


async def look(question: Callable[[], T]) -> T:
    """What it answers, which may take as long as a store does. As with `asyncio.to_thread`, it is of the same model."""
    return await asyncio.get_running_loop().run_in_executor(_threads, copy_context().run, question)


async def keep_looking(question: Callable[[], object], seconds: float) -> None:
    """Look for ever, with pauses of about so many seconds."""
    while True:
        await look(question)
        await pause(seconds)


async def pause(seconds: float) -> None:
    """Of about so many seconds."""
    await asyncio.sleep(seconds * random.uniform(1 - JITTER, 1 + JITTER))
