"""The server's other workers, as far as one may ask them to stop a request: a client's DELETE comes to any of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from registry.errors import InvalidInput
from server.errors import NotReady

ANSWER_SECONDS = 5.0  # in which a worker that works answers, however busy it is
LONGEST_NAME = 107  # bytes of a Unix socket's address (unix(7))

Cancel = Callable[[str, str], int]


class OtherWorkers:
    """Each worker listens at a Unix socket of its own, in a folder that only this user may enter.

    A question is a line of JSON, [key, request id], and its answer a line with a number. Whoever asks has seen the key: this
    key's requests are stopped and nobody else's, as a worker does it for its own clients.
    """

    def __init__(self, folder: Path | None, cancel: Cancel, name: str = "") -> None:
        """folder: shared by all workers, and by nobody else; None where this is the only one. cancel: stops requests here.

        name: this worker's, its process id without one.
        """
        self._folder, self._cancel, self._name = folder, cancel, name or str(os.getpid())
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Answer the others until `close`. Raises `InvalidInput` where the folder's name leaves no room for a socket's."""
        if self._folder is None:
            return
        if len(os.fsencode(self._own)) > LONGEST_NAME:
            raise InvalidInput(
                f"{self._folder} is too long for the sockets in it: at most {LONGEST_NAME - 20} bytes", param="TMPDIR"
            )
        self._server = await asyncio.start_unix_server(self._answer, self._own)

    async def cancel(self, key: str, request_id: str) -> int:
        """Stop this key's requests of this id in all other workers; how many there were.

        A worker that died has taken its requests with it. Raises `NotReady` where no request was found and a worker did not
        answer, which may have it.
        """
        if self._folder is None:
            return 0
        others = [path for path in self._folder.glob("worker-*.sock") if path != self._own]
        counts = await asyncio.gather(*(self._ask(path, key, request_id) for path in others))
        if not any(counts) and None in counts:
            raise NotReady("a worker of this server did not answer, and may have the request: try again")
        return sum(count or 0 for count in counts)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server:
            self._server.close()
            self._own.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        assert self._folder, "only one of several workers has a socket"
        return self._folder / f"worker-{self._name}.sock"

    async def _ask(self, path: Path, key: str, request_id: str) -> int | None:
        """None where there is a worker that does not answer."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(json.dumps([key, request_id]).encode() + b"\n")
                    return int(await reader.readline() or 0)  # nothing: it died over the question
                finally:
                    writer.close()
        except TimeoutError:
            return None
        except OSError:  # nobody listens there any more
            return 0

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):  # who asked has gone meanwhile, or never said anything
            key, request_id = json.loads(await reader.readline())
            writer.write(b"%d\n" % self._cancel(key, request_id))
            await writer.drain()
        writer.close()
