"""A worker that lives is seen to live, whatever became of the answers to its beats."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from lossy_store import LossyStore, one_of

from registry.errors import FlexiError
from server.jobs.leases import HOLDERS, Lease, OtherHolders
from server.storage.async_store import AsyncStore

BEATS = 6


@pytest.mark.parametrize("lost", range(BEATS))
@pytest.mark.parametrize("kind", ["refuses", "loses"])
def test_a_worker_whose_beats_answer_was_lost_goes_on_beating(kind, lost):
    async def go():
        store, now = LossyStore(), 0.0
        own = AsyncStore(lambda: store)
        lease, others = Lease(own), OtherHolders(own, 3.0, lambda: now)
        setattr(store, kind, one_of(lost))
        for beat in range(2 * BEATS):
            with suppress(FlexiError):
                await lease.renew()
            if beat > lost:
                assert not await others.gone([lease.holder]), f"beat {beat}"
            now += 1.5
        await lease.release()
        assert list(store.list(HOLDERS)) == []

    asyncio.run(go())


def test_a_worker_that_was_taken_for_dead_beats_again():
    async def go():
        store = LossyStore()
        lease = Lease(AsyncStore(lambda: store))
        await lease.renew()
        for key in list(store.list(HOLDERS)):
            store.delete(key)
        await lease.renew()
        assert len(list(store.list(HOLDERS))) == 1

    asyncio.run(go())


def test_a_beat_whose_only_answer_was_lost_is_removed_at_the_end():
    async def go():
        store = LossyStore()
        lease = Lease(AsyncStore(lambda: store))
        store.loses = one_of(0)
        with suppress(FlexiError):
            await lease.renew()
        await lease.release()
        assert list(store.list(HOLDERS)) == []

    asyncio.run(go())
