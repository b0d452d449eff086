"""TCP connections on which the client has nothing more to say, but still listens: half-closed ones (RFC 9293, section 3.6).

`nc -N`, some proxies and old clients shut their writing side down when the request is sent. asyncio and uvicorn take that for
leaving, and so does nobody else. The end of a client's stream looks the same when it has left for good, and then its images
should not be made. Only writing tells the two apart: a machine that has closed the connection answers data with a reset. So the
first bytes of the answer, which are the same in any case, leave one at a time, ever more seldom.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from typing_extensions import override
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

BEGINNING = b"HTTP/1.1 "  # of every answer, also to clients of HTTP/1.0
FIRST_LOOK, LOOKS = 0.05, 0.25  # seconds until it is seen whether a byte was answered with a reset


def install() -> None:
    """Let uvicorn speak HTTP by `Connection`. BentoML asks it for its automatic choice, and offers no setting."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


class Connection(H11Protocol):
    """Answers whole requests of half-closed connections. An answer that has begun goes on: the next write tells who left."""

    @override
    def eof_received(self) -> bool | None:  # type: ignore[override] # as asyncio has it; uvicorn always returns None
        """Whether the connection stays open. One with TLS cannot (asyncio), and one with half a request need not."""
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        if not whole or self.cycle.response_complete or self.transport.get_extra_info("sslcontext"):
            return None
        if not self.conn.trailing_data[0]:  # another request, sent at the same time
            self.cycle.keep_alive = False
        if not self.cycle.response_started:
            begun = _BegunAnswer(self.transport)
            self.cycle.transport = begun  # type: ignore[assignment]
            self._look(begun, 0, FIRST_LOOK)
        return True

    def _look(self, begun: _BegunAnswer, next_byte_at: float, pause: float, waited: float = 0) -> None:
        """Send the next byte if it is time, after 0, 1, 2, 4, 8, … seconds, and end the connection if nobody is there."""
        if self.cycle.response_started or self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if waited >= next_byte_at and not self.cycle.waiting_for_100_continue:
            begun.write_a_byte()
            next_byte_at = max(1.0, 2 * waited)
        self.loop.call_later(pause, self._look, begun, next_byte_at, LOOKS, waited + pause)


class _BegunAnswer:
    """A transport on which the first bytes of the answer have left."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._sent = 0

    def write_a_byte(self) -> None:
        """The next byte, while there are any that are sure."""
        self._transport.write(BEGINNING[self._sent : self._sent + 1])
        self._sent = min(self._sent + 1, len(BEGINNING))

    def write(self, answer: bytes) -> None:
        """The rest of the answer's first piece, and all of each other."""
        self._transport.write(answer[self._sent :])
        self._sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
