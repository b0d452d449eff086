"""Going down: who is let in, who may finish, and when the process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from places import ROOT
from server_model import small_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from typing_extensions import override

from server.access.quota import Quotas
from server.api import GenerateRequest
from server.errors import ClientGone, problem
from server.experiments.active import ActiveExperiments
from server.http import drain as module
from server.http import image_events
from server.http.drain import Drain
from server.http.edge import Edge
from server.http.sse import EventStream
from server.requests.generation import Generation, RequestObserver
from server.requests.planner import Planner
from server.requests.running import disconnected
from server.telemetry import metrics
from server.tiers.active import ActiveSchedules


@dataclass
class Call:
    """One request to an ASGI application, and what it answered."""

    path: str
    reads: bool = True  # a client that does not takes the first event of a stream, and nothing after it
    messages: list[dict[str, Any]] = field(default_factory=list)
    leaves: asyncio.Event = field(default_factory=asyncio.Event)

    async def of(self, app: Any) -> Call:
        async def receive() -> dict[str, Any]:
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.messages.append(message)
            if message.get("body") and not self.reads:
                await asyncio.Event().wait()

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


class Settings:
    request_seconds, default_tier, default_guidance = 60.0, "reference", 3.0


class Engine:
    """Is never done with an image."""

    asked = False

    def submit(self, specs: Any, preview: Any = None, progress: Any = None) -> list[Future[Any]]:
        self.asked = True
        return [Future() for _ in specs]


class Codes(RequestObserver, list[str]):
    """How each request ended, as observers are told."""

    @override
    def ended(self, context: Any, plan: Any, seconds: float) -> None:
        self.append(context.code)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def codes() -> Codes:
    return Codes()


@pytest.fixture
def images(tiny, engine, codes) -> Starlette:
    """Images that are never done: as one answer, and as events of which the first comes at once."""
    model = small_model(tiny)
    schedules = ActiveSchedules(lambda: None, model, 4)
    planner = Planner(schedules, ActiveExperiments(lambda: None, schedules), model, lambda *_: 0.25, Settings())
    generation = Generation(planner, engine, Quotas(), [codes])

    async def whole(request: Request) -> Response:
        try:
            await generation.answer(GenerateRequest(prompt="x"), request.state.context, disconnected(request))
        except ClientGone as error:
            return problem(error)
        raise AssertionError("it cannot be done")

    async def events(request: Request) -> Response:
        stream = generation.stream(GenerateRequest(prompt="x"), request.state.context, 0, progress=True)
        return EventStream(image_events.events(await anext(stream), stream, "image_generation"))

    return Starlette(routes=[Route("/whole", whole), Route("/events", events)])


def counted(outcome: str) -> float:
    samples = metrics.request_seconds.collect()[0].samples
    return sum(one.value for one in samples if one.name.endswith("_count") and one.labels["outcome"] == outcome)


@pytest.mark.parametrize(("path", "reads"), [("/whole", True), ("/events", True), ("/events", False)])
def test_what_takes_too_long_was_not_given_up_by_its_client(signals, images, engine, codes, path, reads):
    before = counted("error"), counted("cancelled")

    async def scene() -> None:
        drain = Drain()
        drain.at_sigterm(60)
        call = asyncio.create_task(Call(path, reads).of(Edge(images, drain)))
        await until(lambda: engine.asked)
        drain.begin(0.1)
        await call
        await until(lambda: signals)

    asyncio.run(scene())
    assert codes == ["stopping"]
    assert (counted("error"), counted("cancelled")) == (before[0] + 1, before[1])


@pytest.mark.parametrize("path", ["/whole", "/events"])
def test_a_client_that_leaves_while_the_server_stops_gave_its_request_up(signals, images, engine, codes, path):
    async def scene() -> None:
        drain, call = Drain(), Call(path)
        drain.at_sigterm(60)
        asked = asyncio.create_task(call.of(Edge(images, drain)))
        await until(lambda: engine.asked)
        drain.begin(60)
        call.leaves.set()
        await asked
        await until(lambda: signals)

    asyncio.run(scene())
    assert codes == ["client_gone"]


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
