"""Optimistic writes: read an object, work out the next one, write it unless somebody else was first, and else begin again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress

from registry.errors import Conflict
from registry.stores.base import ObjectStore

ATTEMPTS = 60  # to win a number or an alias that others want too; each round has one winner


def attempts() -> Iterator[suppress]:
    """For a loop whose every turn reads, and then writes inside the context that it is given::

        for attempt in attempts():
            before = read()
            with attempt:
                write(after(before))
                return
        raise Conflict("too many others at the same time: try again")

    The context swallows `Conflict`, after which the next turn waits a little; what is raised outside of it ends the loop.
    """
    for lost in range(ATTEMPTS):
        yield suppress(Conflict)
        stand_back(lost)


def stand_back(lost: int) -> None:
    """Wait a random while, the longer the more attempts were lost, so that those who race spread out."""
    time.sleep(random.uniform(0, min(0.25, 0.002 * 2**lost)))


def write(store: ObjectStore, key: str, data: bytes, etag: str) -> None:
    """Replace the object that has this etag; without an etag, make one. Raises `Conflict` if it is not so any more."""
    if etag:
        store.swap(key, data, etag)
    else:
        store.create(key, data)
