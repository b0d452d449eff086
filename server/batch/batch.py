"""A batch: every line of a file once, through a server that others use, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import isfinite
from time import monotonic, time
from typing import Any

import httpx

from registry.errors import FlexiError
from server.batch.output_folder import OutputFolder
from server.batch.throttle import Throttle
from server.errors import DeadlineExceeded, Unauthorized

LATER = {408, 429, 502, 503}  # not the line's fault
BUSY = LATER | {DeadlineExceeded.status}
TIMES_OVER = 12  # that a line may take longer than a request may; clients that keep a server busy let it, too
UNKNOWN = "unknown"  # the code of what is no error of ours
RETRY_AFTER = 5.0  # seconds, where a server does not say
ANSWER_SECONDS = 320.0  # longer than any request may take
PATIENCE = 600.0  # seconds that a server may be away


class ServerAway(FlexiError):
    """Nobody has answered for long."""

    status = 503
    code = "not_ready"


class Batch:
    """Asks for the lines that are not done, several at a time as `Throttle` has it. For the event loop."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        folder: OutputFolder,
        throttle: Throttle,
        advanced: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        """client: of a server, with the API key. advanced: called for each line that ends. patience: see `ServerAway`."""
        self._client = client
        self._folder = folder
        self._throttle = throttle
        self._advanced = advanced
        self._patience = patience
        self._retry_after = retry_after
        self._answered = monotonic()

    async def run(self, bodies: dict[int, dict[str, Any]]) -> None:
        """Raises `ServerAway`, and `Unauthorized` for a wrong key; what is done stays done."""
        width = max(6, len(str(max(bodies))))
        todo = iter([line for line in bodies if line not in self._folder.outcomes])

        async def work() -> None:
            for line in todo:  # shared: each takes the next one
                await self._make(line, bodies[line], width)

        workers = [asyncio.create_task(work()) for _ in range(self._throttle.most)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _make(self, line: int, body: dict[str, Any], width: int) -> None:
        times_over = 0
        while True:
            async with self._throttle.turn():
                reply = await self._asked(body)
            if reply is None:
                continue
            times_over += reply.status_code == DeadlineExceeded.status
            if reply.status_code != DeadlineExceeded.status or body.get("deadline_ms") or times_over == TIMES_OVER:
                break
        if reply.status_code == 200:
            await asyncio.to_thread(self._folder.done, line, reply.json(), width)
        else:
            self._folder.failed(line, _error_of(reply))
        self._advanced()

    async def _asked(self, body: dict[str, Any]) -> httpx.Response | None:
        """The server's answer to a line; None where it is to be asked again."""
        try:
            reply = await self._client.post("/generate", json=body, timeout=ANSWER_SECONDS)
        except httpx.TransportError as error:
            self._missed(type(error).__name__)
            self._throttle.refused(self._retry_after)
            return None
        busy = reply.status_code in BUSY
        foreign = busy and _error_of(reply)["code"] == UNKNOWN  # a proxy speaks, and not the server
        if foreign:
            self._missed(f"status {reply.status_code}")
        else:
            self._answered = monotonic()
        if reply.status_code == Unauthorized.status:
            raise Unauthorized(str(_error_of(reply)["message"]), param="key")
        if busy:
            self._throttle.refused(seconds_of(reply.headers.get("Retry-After"), self._retry_after))
        elif seconds := reply.headers.get("X-Flexi-Queue-Seconds"):
            self._throttle.served(float(seconds))
        return None if foreign or reply.status_code in LATER else reply

    def _missed(self, why: str) -> None:
        if monotonic() > self._answered + self._patience:
            raise ServerAway(f"no answer for {self._patience:g} s ({why})", param="url")


def seconds_of(retry_after: str | None, default: float) -> float:
    """How long a server asks to be left alone: seconds, or until a date (RFC 9110, 10.2.3); `default` if it says neither."""
    said = retry_after or ""
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time()
        except ValueError:
            return default
    return max(0.0, seconds) if isfinite(seconds) else default


def _error_of(reply: httpx.Response) -> dict[str, Any]:
    """As our servers say it; whatever else answers there is quoted by its status."""
    try:
        error: dict[str, Any] = reply.json()["error"]
        return {key: error[key] for key in ("code", "message", "param")}
    except (ValueError, KeyError, TypeError):
        return {"code": UNKNOWN, "message": f"status {reply.status_code}, and no error of this project's", "param": None}
