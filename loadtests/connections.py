"""Which worker gets a connection where all accept at one socket, as BentoML's do: measured, with processes that do nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

ANSWER_SECONDS = 0.02  # so that a connection is still at work when the next one comes
START_SECONDS = 30.0


async def _whose(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: the process id of whoever answers."""
    await asyncio.sleep(ANSWER_SECONDS)
    said = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


def _work(listening: socket.socket) -> None:
    config = uvicorn.Config(_whose, log_level="critical", lifespan="off", timeout_keep_alive=60)
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def idle_workers(count: int) -> Iterator[str]:
    """The address at which so many processes accept."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_work, args=(listening,)) for _ in range(count)]
        for worker in workers:
            worker.start()
        try:
            time.sleep(1 + count / 4)  # a worker that does not accept yet would get nothing
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()


def at_once(address: str, connections: int) -> list[int]:
    """How many connections each worker that got any has, of so many that are opened together, in ascending order."""

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=connections)
        async with httpx.AsyncClient(timeout=START_SECONDS, limits=limits) as http:
            return await asyncio.gather(*(http.get(address) for _ in range(connections)))

    return sorted(Counter(answer.text for answer in asyncio.run(ask())).values())


def one_by_one(address: str, connections: int) -> list[int]:
    """The same of connections of which each is opened when the one before has had its answer, and is idle."""

    async def ask() -> list[str]:
        clients = [httpx.AsyncClient(timeout=START_SECONDS) for _ in range(connections)]
        answers = [(await client.get(address)).text for client in clients]
        for client in clients:
            await client.aclose()
        return answers

    return sorted(Counter(asyncio.run(ask())).values())
