"""A batch: every line of a file once, through a server that others use, too."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import isfinite
from time import monotonic, time
from typing import Any

import httpx

from registry.errors import FlexiError
from server.batch.output_folder import OutputFolder
from server.batch.queue_of_lines import QueueOfLines
from server.batch.throttle import Throttle
from server.errors import DeadlineExceeded, NotReady, Unauthorized

LATER = {408, 429, 502, 503}  # not the line's fault
BUSY = LATER | {DeadlineExceeded.status}
TIMES_OVER = 12  # that a line may take longer than a request may; clients that keep a server busy let it, too
UNKNOWN = "unknown"  # the code of what is no error of ours
RETRY_AFTER = 5.0  # seconds, where a server does not say
ANSWER_SECONDS = 320.0  # longer than any request may take
PATIENCE = 600.0  # seconds that a server may be away, or a model that it cannot load
TRIES = 12  # of a model's lines, at least, before it counts as away: two may be far apart, and say little


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
        self._made = 0  # lines that have their images
        self._times_over = Counter[int]()  # by line: how often it took too long
        self._made_before = dict[int, int]()  # by line: how many were made when it last took too long for a proxy
        self._refusals = dict[Any, tuple[float, int]]()  # by model that is away: since when, and how often it was asked for

    async def run(self, bodies: dict[int, dict[str, Any]]) -> None:
        """Raises `ServerAway`, and `Unauthorized` for a wrong key; what is done stays done."""
        width = max(6, len(str(max(bodies))))
        todo = QueueOfLines(line for line in bodies if line not in self._folder.outcomes)

        async def work() -> None:
            while todo:  # shared; what others have in hand they ask for again themselves
                async with self._throttle.turn():
                    if not todo:
                        return
                    line = todo.take()  # not before it is to be asked for: who waits for a turn keeps no line waiting
                    reply = await self._asked(line, bodies[line])
                    if reply is None:
                        todo.refused(line)
                if reply is not None:
                    await self._end(line, reply, width)

        workers = [asyncio.create_task(work()) for _ in range(self._throttle.most)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _end(self, line: int, reply: httpx.Response, width: int) -> None:
        if reply.status_code == 200:
            await asyncio.to_thread(self._folder.done, line, reply.json(), width)
        else:
            self._folder.failed(line, _error_of(reply))
        self._advanced()

    async def _asked(self, line: int, body: dict[str, Any]) -> httpx.Response | None:
        """The answer that ends a line; None where it is to be asked for again."""
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
            over = self._is_over(line, body, reply)
            if not over or reply.status_code not in LATER:  # a model that is given up keeps no other waiting
                self._throttle.refused(seconds_of(reply.headers.get("Retry-After"), self._retry_after))
            return reply if over else None
        if seconds := reply.headers.get("X-Flexi-Queue-Seconds"):
            self._throttle.served(float(seconds))
        if reply.status_code == 200:
            self._made += 1
            self._refusals.pop(body.get("model"), None)
        return reply

    def _is_over(self, line: int, body: dict[str, Any], reply: httpx.Response) -> bool:
        """Whether a line that was refused has had its tries."""
        error = _error_of(reply)
        if reply.status_code == DeadlineExceeded.status:
            if error["code"] != UNKNOWN:
                self._times_over[line] += 1
                return bool(body.get("deadline_ms")) or self._times_over[line] >= TIMES_OVER
            # A proxy's: the line's fault only where others are made meanwhile, else the server is away.
            self._times_over[line] += self._made > self._made_before.get(line, 0)
            self._made_before[line] = self._made
            return self._times_over[line] >= TIMES_OVER
        if (error["code"], error["param"]) != (NotReady.code, "model"):
            return False
        since, times = self._refusals.get(body.get("model"), (monotonic(), 0))
        self._refusals[body.get("model")] = since, times + 1
        return times + 1 >= TRIES and monotonic() >= since + self._patience

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
