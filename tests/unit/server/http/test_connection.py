"""Half-closed connections get their answer from a real uvicorn, and clients that have left are noticed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import anyio
import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from server.http import connection

ANSWER = b"x" * 1000


class Application:
    """Answers when it is told to, and says how its last request ended."""

    def __init__(self) -> None:
        self.go_on, self.ended = threading.Event(), threading.Event()
        self.outcome = ""

    async def __call__(self, scope, receive, send) -> None:
        assert scope["type"] == "http"
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/stream":
            await self.stream(send)
        else:
            await self.answer(receive, send)
        self.ended.set()

    async def answer(self, receive, send) -> None:
        with anyio.move_on_after(20) as waiting:
            async with anyio.create_task_group() as group:
                group.start_soon(self.watch, receive, group.cancel_scope)
                while not self.go_on.is_set():
                    await anyio.sleep(0.01)
                self.outcome = "answered"
                group.cancel_scope.cancel()
        assert not waiting.cancelled_caught
        if self.outcome == "answered":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": ANSWER})

    async def watch(self, receive, scope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.outcome = self.outcome or "left"
        scope.cancel()

    async def stream(self, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": ANSWER, "more_body": True})
            await anyio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def served(monkeypatch) -> Iterator[tuple[Application, int]]:
    """An application, and the port of a uvicorn that was told to speak HTTP as BentoML's is."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    connection.install()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = Application()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield app, listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def asked(port: int, path: str = "/", version: str = "1.1", body: bytes = b"{}", length: int = 2) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(f"POST {path} HTTP/{version}\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode() + body)
    return client


def read(client: socket.socket) -> bytes:
    """All that comes, until the server closes."""
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("wait", [0.0, 0.5, 2.5])
def test_a_half_closed_connection_gets_its_answer(served, version, wait):
    """Whether it comes before a byte of it was sent, after one, or after several."""
    app, port = served
    client = asked(port, version=version)
    client.shutdown(socket.SHUT_WR)
    threading.Timer(wait, app.go_on.set).start()
    head, _, body = read(client).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert body == ANSWER
    assert app.outcome == "answered"


def test_a_half_closed_connection_gets_all_of_a_stream(served):
    _, port = served
    client = asked(port, "/stream")
    client.shutdown(socket.SHUT_WR)
    got = read(client)
    assert (got.count(ANSWER), got.endswith(b"3\r\nend\r\n0\r\n\r\n")) == (10, True)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_has_left(served, version):
    app, port = served
    asked(port, version=version).close()
    assert app.ended.wait(10)
    assert app.outcome == "left"


def test_a_client_that_half_closes_and_closes_later_has_left(served):
    app, port = served
    client = asked(port)
    client.shutdown(socket.SHUT_WR)
    time.sleep(0.5)
    assert not app.ended.is_set()
    client.close()
    assert app.ended.wait(15)
    assert app.outcome == "left"


def test_half_a_request_is_none(served):
    _, port = served
    client = asked(port, body=b"{", length=2)
    client.shutdown(socket.SHUT_WR)
    assert read(client) == b""


def test_two_requests_at_once_get_two_answers(served):
    app, port = served
    app.go_on.set()
    client = asked(port)
    client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}")
    client.shutdown(socket.SHUT_WR)
    assert read(client).count(b"HTTP/1.1 200 OK") == 2


def test_a_connection_that_asks_nothing_is_closed(served):
    _, port = served
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
