"""The few verbs of S3 that a registry needs, over a dictionary, on 127.0.0.1; it keeps bodies as `keep` says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class DictS3(ThreadingHTTPServer):
    """`objects` by path; `heard`: method and headers of each request, names in lower case."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Verbs)
        self.objects: dict[str, bytes] = {}
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.keep: Callable[[bytes], bytes] = lambda body: body
        self.etag: Callable[[bytes], str] = lambda body: f'"{hashlib.md5(body).hexdigest()}"'
        self.matches: Callable[[str, str], bool] = str.__eq__

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Verbs(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DictS3

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        body, old = self._body(), self.server.objects.get(self.path)
        wanted = self.headers.get("If-Match")
        if self.headers.get("If-None-Match") and old is not None:
            return self._say(412, _error("PreconditionFailed"))
        if wanted and (old is None or not self.server.matches(self.server.etag(old), wanted)):
            return self._say(412, _error("PreconditionFailed"))
        self.server.objects[self.path] = self.server.keep(body)
        return self._say(200, etag=self.server.etag(self.server.objects[self.path]))

    def do_GET(self) -> None:
        self._body()
        if (data := self.server.objects.get(self.path)) is None:
            return self._say(404, _error("NoSuchKey"))
        return self._say(200, data, self.server.etag(data))

    do_HEAD = do_GET  # noqa: N815 - the standard library looks methods up by these names

    def _body(self) -> bytes:
        self.server.heard.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _say(self, status: int, body: bytes = b"", etag: str = "") -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


@contextmanager
def dict_s3() -> Iterator[DictS3]:
    """Serves for as long as a `with` block."""
    with DictS3() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
