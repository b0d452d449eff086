"""Looks at the registry: a store that hangs keeps no other work waiting, and a look is of the model that it is made for."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from registry.errors import StoreUnavailable
from server.experiments.candidates import ActiveCandidates
from server.experiments.runtime import ExperimentRuntime
from server.telemetry import served
from server.tiers.looks import look
from server.tiers.watch import Watch


def watch(ask):
    return Watch(None, ask)


def experiments(ask):
    return ExperimentRuntime(SimpleNamespace(refresh=ask), None, None)


def candidates(ask):
    return ActiveCandidates(ask, None, None)


@pytest.mark.parametrize("follower", [watch, experiments, candidates])
def test_a_store_that_hangs_takes_none_of_the_threads_that_requests_need(follower):
    asked, over = threading.Event(), threading.Event()

    def ask():
        asked.set()
        over.wait(60)
        raise StoreUnavailable("the test is over")

    async def go():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        following = asyncio.create_task(follower(ask).follow(0.01))
        try:
            while not asked.is_set():
                await asyncio.sleep(0.01)
            return await asyncio.wait_for(asyncio.to_thread(lambda: "an image file"), 10)
        finally:
            over.set()
            following.cancel()

    assert asyncio.run(go()) == "an image file"


def test_what_a_look_counts_is_counted_for_its_model():
    async def go():
        with served.serving("ours"):
            return await look(served.model)

    assert asyncio.run(go()) == "ours"
