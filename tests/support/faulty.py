"""A proxy in front of a real S3 server that fails on demand: what it does to requests is set while it runs."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Answer:
    """What the real server said, and how much of the body it shall seem to have had."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    length: int | None = None


Fault = Callable[[Callable[[], Answer]], Answer]


def healthy(ask: Callable[[], Answer]) -> Answer:
    """Passes everything on."""
    return ask()


def says(status: int, code: str) -> Fault:
    """Answers each request with an error of S3, as a store does that refuses it."""
    body = f"<Error><Code>{code}</Code><Message>{code} of the proxy</Message></Error>".encode()
    return lambda ask: Answer(status, [("Content-Type", "application/xml")], body)


def slow(seconds: float) -> Fault:
    """Answers, but so late that nobody waits for it."""

    def wait(ask: Callable[[], Answer]) -> Answer:
        time.sleep(seconds)
        return ask()

    return wait


def truncated(ask: Callable[[], Answer]) -> Answer:
    """Promises the whole body and sends half of it."""
    answer = ask()
    return Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2], len(answer.body))


class FaultyProxy:
    """Listens on 127.0.0.1; `endpoint` stays the same while it is closed and opened."""

    def __init__(self, upstream: str) -> None:
        self.fault: Fault = healthy
        self.requests: list[str] = []
        self._upstream = urlsplit(upstream).netloc
        self._port = 0
        self.open()

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Listen, on the port of the last time if there was one."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - the standard library's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """From now on, connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.requests.append(f"{request.command} {request.path}")
        answer = self.fault(lambda: self._ask(request, body))
        request.close_connection = True
        try:
            request.send_response(answer.status)
            for name, value in answer.headers:
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            request.send_header("Connection", "close")
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(answer.body)
        except ConnectionError:
            pass  # the client did not wait

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():  # the host too: it is signed
                if name.lower() not in {"connection", "expect"}:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            got = upstream.getresponse()
            headers = [(name, value) for name, value in got.getheaders() if name.lower() not in HOP_BY_HOP]
            return Answer(got.status, headers, got.read())
        finally:
            upstream.close()


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy for as long as a `with` block."""
    proxy = FaultyProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
