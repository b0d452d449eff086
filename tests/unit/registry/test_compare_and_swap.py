"""Whoever loses begins again with what the winner wrote; a refusal ends it at once, and so does a crowd that never thins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from memory_store import MemoryStore

from registry import compare_and_swap
from registry.compare_and_swap import ATTEMPTS, attempts, write
from registry.errors import Conflict, NotFound

THREADS, TURNS = 6, 10


def add_one(store: MemoryStore) -> int:
    for attempt in attempts():
        try:
            data, etag = store.get("m/count")
        except NotFound:
            data, etag = b"0", ""
        with attempt:
            write(store, "m/count", b"%d" % (int(data) + 1), etag)
            return int(data) + 1
    raise AssertionError("crowded out")


def test_no_update_is_lost_and_each_is_made_once() -> None:
    store = MemoryStore()
    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(lambda _: add_one(store), range(THREADS * TURNS)))
    assert sorted(counts) == list(range(1, THREADS * TURNS + 1))


def test_a_crowd_that_never_thins_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(compare_and_swap.time, "sleep", waits.append)
    store, tries = MemoryStore(), 0
    store.create("m/taken", b"")
    for attempt in attempts():
        with attempt:
            tries += 1
            write(store, "m/taken", b"", "")
    assert tries == len(waits) == ATTEMPTS
    assert 0 <= max(waits) <= 0.25


def test_a_refusal_outside_of_the_write_is_not_tried_again() -> None:
    tries = 0
    with pytest.raises(Conflict, match="refused"):  # noqa: PT012 - in the middle of a loop
        for _ in attempts():
            tries += 1
            raise Conflict("refused")
    assert tries == 1
