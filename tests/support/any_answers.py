"""A server on 127.0.0.1 that answers each request with whatever a test says: any status, headers and bytes, also none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import parse_headers
from io import BufferedReader
from typing import Any

from botocore.config import Config

from registry.stores.s3_client import make_client

HASTE = Config(connect_timeout=1, read_timeout=0.5, retries={"total_max_attempts": 1})


@dataclass(frozen=True)
class AnyAnswer:
    """What goes over the wire. `length`: what Content-Length says, None for the truth; `sent`: how many bytes of all are."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    length: int | None = None
    sent: int | None = None

    def wire(self, command: str, heard: dict[str, str]) -> bytes:
        headers = [f"{name}: {value.format(**heard)}" for name, value in self.headers]
        if all(name.lower() != "transfer-encoding" for name, _ in self.headers):
            headers.append(f"Content-Length: {len(self.body) if self.length is None else self.length}")
        head = "\r\n".join([f"HTTP/1.1 {self.status} Said", *headers, "Connection: close", "", ""])
        return (head.encode("latin-1", "replace") + (b"" if command == "HEAD" else self.body))[: self.sent]


@dataclass
class AnyServer:
    """`answer` says what each request gets; `log` holds (command, answer) of all requests so far.

    An answer's headers may repeat `{writer}`, the token of the last write, and `{token}`, a secret of the request.
    """

    endpoint: str
    answer: Callable[[str], AnyAnswer]
    log: list[tuple[str, AnyAnswer]] = field(default_factory=list)
    writer: str = ""

    def handle(self, connection: socket.socket) -> None:
        connection.settimeout(2)
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                command = line.split()[0].decode()
                heard = self._heard(stream, connection)
                answer = self.answer(command)
                self.log.append((command, answer))
                connection.sendall(answer.wire(command, heard))
                return

    def _heard(self, stream: BufferedReader, connection: socket.socket) -> dict[str, str]:
        """What an answer may repeat of a request, which is read whole."""
        headers = parse_headers(stream)
        if headers.get("Expect"):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        stream.read(int(headers.get("Content-Length", 0)))
        self.writer = headers.get("x-amz-meta-writer", self.writer)
        return {"writer": self.writer, "token": headers.get("x-amz-security-token", "")}


@contextmanager
def any_server(answer: Callable[[str], AnyAnswer] = lambda command: AnyAnswer()) -> Iterator[AnyServer]:
    """Listens for as long as a `with` block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = AnyServer(f"http://127.0.0.1:{listening.getsockname()[1]}", answer)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=server.handle, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server
        listening.shutdown(socket.SHUT_RDWR)


def hasty_client(url: str = "s3://bucket") -> Any:
    """The client that the environment's settings make, but one that tries once and waits half a second."""
    return make_client(url, HASTE)
