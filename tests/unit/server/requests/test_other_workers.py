"""A request is stopped in whichever worker it runs, and only for its own key."""

from __future__ import annotations

import asyncio
import socket

import pytest

from registry.errors import InvalidInput
from server.errors import NotReady
from server.requests import other_workers
from server.requests.other_workers import OtherWorkers
from server.requests.running import RunningRequests


async def workers(folder, count):
    """As many workers' running requests, and how each reaches the others."""
    running = [RunningRequests() for _ in range(count)]
    reach = [OtherWorkers(folder, one.cancel, name=str(number)) for number, one in enumerate(running)]
    for one in reach:
        await one.listen()
    return running, reach


def test_a_request_is_stopped_wherever_it_runs_and_counted_as_often(tmp_path):
    async def scenario():
        running, reach = await workers(tmp_path, 3)
        with running[1].entered("shop", "r") as stop, running[2].entered("shop", "r") as twin:
            assert await reach[0].cancel("shop", "r") == 2
            assert stop.is_set()
            assert twin.is_set()
        assert await reach[0].cancel("shop", "r") == 0
        for one in reach:
            await one.close()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(scenario())


def test_nobody_stops_the_request_of_another_key(tmp_path):
    async def scenario():
        running, reach = await workers(tmp_path, 2)
        with running[1].entered("shop", "r") as stop:
            assert await reach[0].cancel("other", "r") == 0
            assert await reach[0].cancel('shop", "r', "r") == 0
            assert await reach[0].cancel("shop", "r\n") == 0
            assert not stop.is_set()
        for one in reach:
            await one.close()

    asyncio.run(scenario())


def test_a_worker_that_died_holds_nobody_up(tmp_path):
    async def scenario():
        running, reach = await workers(tmp_path, 2)
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(tmp_path / "worker-9.sock"))
        dead.close()  # as after a kill: the name stays
        with running[1].entered("shop", "r"):
            assert await reach[0].cancel("shop", "r") == 1
        assert await reach[0].cancel("shop", "r") == 0
        for one in reach:
            await one.close()

    asyncio.run(scenario())


def test_a_worker_that_hangs_is_no_proof_that_a_request_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(other_workers, "ANSWER_SECONDS", 0.2)

    async def scenario():
        running, reach = await workers(tmp_path, 2)
        with socket.socket(socket.AF_UNIX) as hanging:
            hanging.bind(str(tmp_path / "worker-9.sock"))
            hanging.listen()
            with pytest.raises(NotReady, match="did not answer"):
                await reach[0].cancel("shop", "r")
            with running[1].entered("shop", "r"):
                assert await reach[0].cancel("shop", "r") == 1
        for one in reach:
            await one.close()

    asyncio.run(scenario())


def test_whoever_says_nothing_sensible_is_not_answered_and_the_next_one_is(tmp_path):
    async def scenario():
        running, (first, second) = await workers(tmp_path, 2)
        for said in (b"", b"{\n", b"[1, 2, 3]\n", b"x" * 200_000):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "worker-1.sock")
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        with running[1].entered("shop", "r"):
            assert await first.cancel("shop", "r") == 1
        await first.close()
        await second.close()

    asyncio.run(scenario())


def test_an_only_worker_asks_nobody_and_a_name_that_is_too_long_is_said(tmp_path):
    async def scenario():
        alone = OtherWorkers(None, lambda key, request_id: 1)
        await alone.listen()
        assert await alone.cancel("shop", "r") == 0
        await alone.close()
        deep = tmp_path / ("x" * 100)
        deep.mkdir()
        with pytest.raises(InvalidInput, match=r"TMPDIR: .* is too long"):
            await OtherWorkers(deep, lambda key, request_id: 1).listen()

    asyncio.run(scenario())
