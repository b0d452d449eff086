"""Whichever write the store refuses, or makes and does not answer: a job ends once, is counted once, and does not stay open."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from job_workers import Hooks, Worker
from lossy_store import LossyStore, one_of

from registry.errors import Overloaded, StoreUnavailable
from server.jobs.job_store import ENDED, OPEN
from server.storage.kept_files import FOLDER
from server.telemetry import metrics

WRITES = 9  # one more than a job has: a beat, claimed, given back, claimed again, a file, ended, removed, another beat


def counted() -> float:
    (family,) = metrics.job_seconds.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_count"))


async def looks(worker: Worker, store: LossyStore) -> None:
    """A worker looks for work until nothing is open, as `follow` does."""
    for _ in range(300):
        with suppress(StoreUnavailable):
            await worker.turn()
        await asyncio.sleep(0.002)
        if not list(store.list(OPEN)) and not worker.runner._running:
            return
    raise AssertionError([*store.list(OPEN)])


@pytest.mark.parametrize("webhook", [None, "http://127.0.0.1/done"])
@pytest.mark.parametrize("number", range(WRITES))
@pytest.mark.parametrize("kind", ["refuses", "loses"])
def test_a_job_survives_any_write(store, kind, number, webhook):
    async def go():
        hooks, before = Hooks(), counted()
        worker = Worker(store, webhooks=hooks)
        worker.fails(Overloaded("full", retry_after=0.001))
        kept = await worker.bring(webhook=webhook)
        setattr(store, kind, one_of(number))
        await looks(worker, store)
        end = await worker.jobs.find("anonymous", kept.id)
        assert (end.state, end.job.attempts) == ("succeeded", 1), "no worker has died"
        assert len(worker.asked) == 2, "nothing is made twice"
        assert counted() == before + 1
        assert set(hooks.calls) == ({(webhook, kept.id, "succeeded")} if webhook else set())
        assert len(list(store.list(ENDED))) == 1

    asyncio.run(go())


def test_a_store_that_never_answers_a_claim_ends_no_job(store):
    """Each claim is made, and reported as failed: no worker has died for that."""

    async def go():
        worker = Worker(store)
        kept = await worker.bring()
        store.loses = lambda verb, key: verb == "swap" and key.startswith(OPEN)
        for _ in range(20):
            with suppress(StoreUnavailable):
                await worker.turn()
        assert worker.asked == []
        store.loses = lambda verb, key: False
        await looks(worker, store)
        assert (await worker.jobs.find("anonymous", kept.id)).state == "succeeded"

    asyncio.run(go())


def test_an_end_that_cannot_be_read_is_left_alone_and_holds_up_nobody(store, caplog):
    async def go():
        worker = Worker(store)
        kept = await worker.bring()
        store.create(ENDED + kept.place, b'{"state": "of tomorrow"}')
        other = await worker.bring()
        for _ in range(5):
            await worker.turn()
            await asyncio.sleep(0.01)
        assert (await worker.jobs.find("anonymous", other.id)).state == "succeeded"
        assert list(store.list(OPEN)) == [OPEN + kept.place]
        assert len(worker.asked) == 1, "that it has ended is seen before anything is made for it"
        store.delete(ENDED + kept.place)
        await looks(worker, store)

    asyncio.run(go())
    assert sum("left alone" in record.getMessage() for record in caplog.records) == 1


def test_a_job_that_was_ended_elsewhere_and_not_closed_is_not_made(store):
    async def go():
        worker, other = Worker(store), Worker(store)
        kept = await worker.bring()
        end = other.jobs._run.failed(kept, Overloaded("full", retry_after=1.0))
        await other.runner._store.end(end)
        await looks(worker, store)
        assert worker.asked == []
        assert await worker.jobs.find("anonymous", kept.id) == end
        assert list(store.list(FOLDER)) == []

    asyncio.run(go())


def test_a_webhook_that_cannot_even_be_called_is_given_up(store):
    async def go():
        hooks = Hooks()
        worker = Worker(store, webhooks=hooks)

        async def deliver(url, end):
            hooks.calls.append(url)
            raise ZeroDivisionError

        hooks.deliver = deliver
        await worker.bring(webhook="http://127.0.0.1/done")
        await looks(worker, store)
        assert len(hooks.calls) == 1

    asyncio.run(go())
