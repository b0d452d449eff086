"""A stream of events ends when it is all read, when nobody reads it, and when the client leaves; each time it is closed."""

from __future__ import annotations

import asyncio
import json

import pytest

from server.errors import ClientGone
from server.http import sse


class Events:
    """Counts what was asked for, and notes that it was closed."""

    def __init__(self):
        self.asked, self.closed = 0, False

    async def __call__(self):
        try:
            for i in range(100):
                self.asked += 1
                yield sse.event("some", {"i": i})
        finally:
            self.closed = True


def serve(events, send, receive=None):
    async def never():
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    asyncio.run(sse.EventStream(events())(scope, receive or never, send))


def test_all_of_it():
    events, sent = Events(), []

    async def send(message):
        sent.append(message)

    serve(events, send)
    assert events.closed
    assert dict(sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    first, data, *_ = sent[1]["body"].decode().split("\n")
    assert (first, json.loads(data.removeprefix("data: "))) == ("event: some", {"type": "some", "i": 0})


def test_a_client_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(sse, "READER_SECONDS", 0.05)
    events, taken = Events(), []

    async def send(message):
        if len(taken) == 4:  # the start and three events, and then its buffers are full
            await asyncio.Event().wait()
        taken.append(message)

    with pytest.raises(ClientGone):
        serve(events, send)
    assert events.closed
    assert events.asked == 4, "events were made that nobody had room for"


def test_a_client_that_leaves():
    events, gone = Events(), asyncio.Event()

    async def send(message):
        if message["type"] == "http.response.body":
            gone.set()
            await asyncio.sleep(0)

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    serve(events, send, receive)
    assert events.closed
    assert events.asked < 100
