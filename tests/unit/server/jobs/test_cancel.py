"""A cancelled job stops wherever it is, and its webhook is called, whoever dies; while the store is away, nobody waits."""

from __future__ import annotations

import asyncio

import pytest
from job_workers import Hooks, Worker, takes_the_rest

from registry.errors import StoreUnavailable
from server.jobs.job_store import ENDED, OPEN
from server.jobs.record import ImageJob

URL = "http://127.0.0.1/done"


async def until_closed(store, *workers):
    for _ in range(500):
        for worker in workers:
            await worker.turn()
        await asyncio.sleep(0.002)
        if not list(store.list(OPEN)):
            return
    raise AssertionError("it stays open")


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
@pytest.mark.parametrize("here", [True, False], ids=["its own worker", "another worker"])
def test_the_webhook_of_a_cancelled_job_is_called_by_others_if_all_die_that_have_to_do_with_it(store, here, running):
    async def go():
        worker, other = (Worker(store, webhooks=Hooks(may=False)) for _ in range(2))
        worker.go.clear()
        kept = await worker.bring(webhook=URL)
        if running:
            await worker.turn()
            await worker.running.wait()
        end = await (worker if here else other).jobs.cancel("anonymous", kept.id)
        assert end.state == "cancelled"
        for dead in (worker, other):
            await dead.die()
        last = takes_the_rest(Worker(store, webhooks=Hooks()))
        await until_closed(store, last)
        assert last.runner._webhooks.calls == [(URL, kept.id, "cancelled")]
        assert last.asked == []

    asyncio.run(go())


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
@pytest.mark.parametrize("here", [True, False], ids=["its own worker", "another worker"])
def test_the_webhook_of_a_cancelled_job_is_called_once_while_all_live(store, here, running):
    async def go():
        worker, other = (Worker(store, webhooks=Hooks()) for _ in range(2))
        worker.go.clear()
        kept = await worker.bring(webhook=URL)
        if running:
            await worker.turn()
            await worker.running.wait()
        await (worker if here else other).jobs.cancel("anonymous", kept.id)
        await until_closed(store, worker, other)
        assert worker.runner._webhooks.calls + other.runner._webhooks.calls == [(URL, kept.id, "cancelled")]
        assert len(worker.asked) == running
        assert other.asked == []

    asyncio.run(go())


@pytest.mark.parametrize("here", [True, False], ids=["its own worker", "another worker"])
def test_the_webhook_of_a_job_that_waits_is_called_though_every_worker_is_busy(store, here):
    async def go():
        worker, other = (Worker(store, together=1, webhooks=Hooks()) for _ in range(2))
        for busy in (worker, other):
            busy.go.clear()
            await busy.bring()
            await busy.turn()
            await busy.running.wait()
        kept = await worker.bring(webhook=URL)
        await (worker if here else other).jobs.cancel("anonymous", kept.id)
        await asyncio.sleep(0.02)
        assert worker.runner._webhooks.calls + other.runner._webhooks.calls == [(URL, kept.id, "cancelled")]

    asyncio.run(go())


@pytest.mark.parametrize("kind", ["refuses", "loses"])
@pytest.mark.parametrize("webhook", [None, URL])
def test_while_the_store_is_away_a_job_cannot_be_cancelled_and_nobody_waits(store, kind, webhook):
    async def go():
        worker = Worker(store, webhooks=Hooks())
        worker.go.clear()
        kept = await worker.bring(webhook=webhook)
        await worker.turn()
        await worker.running.wait()
        setattr(store, kind, lambda verb, key: key.startswith(ENDED))
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(10):
                await worker.jobs.cancel("anonymous", kept.id)
        if kind == "refuses":
            assert isinstance(await worker.jobs.find("anonymous", kept.id), ImageJob)
        setattr(store, kind, lambda verb, key: False)
        assert (await worker.jobs.cancel("anonymous", kept.id)).state == "cancelled", "a second time"
        await until_closed(store, worker)

    asyncio.run(go())


@pytest.mark.parametrize("webhook", [None, URL])
def test_a_job_is_cancelled_once_that_is_said_whatever_becomes_of_its_open_record(store, webhook):
    async def go():
        worker = Worker(store, webhooks=Hooks())
        kept = await worker.bring(webhook=webhook)
        store.refuses = lambda verb, key: not key.startswith(ENDED)
        assert (await worker.jobs.cancel("anonymous", kept.id)).state == "cancelled"
        store.refuses = lambda verb, key: False
        await until_closed(store, worker)
        assert worker.asked == []
        assert len(worker.runner._webhooks.calls) == bool(webhook)

    asyncio.run(go())
