"""Going down: who is let in, who may finish, and when the process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from places import ROOT
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from server.http import drain as module
from server.http.drain import Drain
from server.http.edge import Edge


@dataclass
class Call:
    """One request to an ASGI application, and what it answered."""

    path: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def of(self, app: Any) -> Call:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            raise AssertionError("nothing more comes")

        async def send(message: dict[str, Any]) -> None:
            self.messages.append(message)

        await app({"type": "http", "method": "GET", "path": self.path, "headers": [], "query_string": b""}, receive, send)
        return self

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


@pytest.fixture
def signals(monkeypatch):
    """The signals that reached what stands for the HTTP server's own handler; and no last resort."""
    signals = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    monkeypatch.setattr(module, "LAST_RESORT_SECONDS", 3600)
    yield signals
    signal.signal(signal.SIGTERM, before)


def application(drain: Drain, work: asyncio.Event) -> Edge:
    async def slow(_: Any) -> PlainTextResponse:
        await work.wait()
        return PlainTextResponse("done")

    async def stream(_: Any) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "begun "
            await work.wait()
            yield "done"

        return StreamingResponse(parts())

    async def probe(_: Any) -> PlainTextResponse:
        return PlainTextResponse("up")

    routes = [Route("/slow", slow), Route("/stream", stream), Route("/livez", probe)]
    return Edge(Starlette(routes=routes), drain)


async def running(app: Edge, *paths: str) -> list[asyncio.Task[Call]]:
    tasks = [asyncio.create_task(Call(path).of(app)) for path in paths]
    await asyncio.sleep(0.05)
    return tasks


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_running_requests_finish_and_new_ones_are_refused(signals):
    async def scene() -> None:
        drain, work = Drain(), asyncio.Event()
        drain.at_sigterm(60)
        app = application(drain, work)
        old = await running(app, "/slow", "/stream")
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: drain.stopping)
        late = await Call("/slow").of(app)
        assert (late.status, b'"stopping"' in late.body) == (503, True)
        assert late.headers[b"connection"] == b"close"
        assert int(late.headers[b"retry-after"]) > 0
        assert (await Call("/livez").of(app)).status == 200
        assert not signals, "requests still run"
        work.set()
        answers = [(call.status, call.body) for call in await asyncio.gather(*old)]
        assert answers == [(200, b"done"), (200, b"begun done")]
        await until(lambda: signals)

    asyncio.run(scene())
    assert signals == [signal.SIGTERM]


def test_what_takes_too_long_is_given_up(signals):
    async def scene() -> None:
        drain = Drain()
        drain.at_sigterm(60)
        app = application(drain, asyncio.Event())
        old = await running(app, "/slow", "/stream")
        drain.begin(0.1)
        slow, stream = await asyncio.gather(*old)
        assert (slow.status, b'"stopping"' in slow.body) == (503, True)
        assert (stream.status, stream.body) == (200, b"begun ")
        assert stream.messages[-1].get("more_body"), "a stream that is broken off must not look whole"
        await until(lambda: signals)

    asyncio.run(scene())


def test_the_first_word_holds(signals):
    async def scene() -> None:
        drain, work = Drain(), asyncio.Event()
        drain.at_sigterm(60)
        (old,) = await running(application(drain, work), "/slow")
        drain.begin(60)
        drain.begin(0)
        await asyncio.sleep(0.1)
        assert not old.done()
        work.set()
        assert (await old).status == 200
        await until(lambda: signals)

    asyncio.run(scene())
    assert signals == [signal.SIGTERM]


def test_a_timeout_of_the_application_stays_its_own():
    async def scene() -> None:
        drain = Drain()
        async with drain.request():
            raise TimeoutError("a store's")

    with pytest.raises(TimeoutError, match="a store's"):
        asyncio.run(scene())


HANGS = """
import asyncio, os, signal, time
from server.http import drain
drain.LAST_RESORT_SECONDS = 0.2

async def main():
    own = drain.Drain()
    own.at_sigterm(0.1)
    async with own.request():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        time.sleep(60)  # the device hangs, and holds the event loop

asyncio.run(main())
"""


def test_a_process_that_hangs_ends_all_the_same():
    assert subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, timeout=50).returncode == 1
