"""The peers' servers, each a process of its own on 127.0.0.1."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Any

from examples.launch import end, exit_on_sigterm, free_port, spawned, wait_until_ready
from loadtests.competitor import BATCHING, MIX, SIMULATED
from registry.errors import FlexiError


@dataclass(frozen=True)
class Contender:
    """A server: its command up to the port, and its environment."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def body(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The request as this server wants it: BentoML's batches are lists, of one here."""
        return {"requests": [wanted]} if "loadtests.batcher:Batcher" in self.command else wanted


@dataclass(frozen=True)
class ContenderStart:
    """How a server's start went: its address and the seconds until it was ready, or why it never was."""

    address: str
    seconds: float
    fault: str | None = None


def contenders(mix: str, settings: Mapping[str, str], simulated: bool, registry: Path) -> list[Contender]:
    """The servers that compete on a mix, all with these FLEXI_* settings, on the simulated card or on a real device.

    diffusers cannot run partial steps, so the naive server has no part in that mix.
    """
    shared = {**settings, SIMULATED: "1" if simulated else "", MIX: mix}
    bento = ("-m", "bentoml", "serve")
    ours = "loadtests.simulated_service:Flexiffusion" if simulated else "server.service:Flexiffusion"
    everybody = [
        Contender("naive", ("-m", "uvicorn", "loadtests.naive:app", "--log-level", "warning"), shared),
        Contender("batcher", (*bento, "loadtests.batcher:Batcher"), shared | {BATCHING: "grouped"}),
        Contender("batcher, together", (*bento, "loadtests.batcher:Batcher"), shared | {BATCHING: "together"}),
        Contender("ours", (*bento, ours), shared | {"FLEXI_REGISTRY": str(registry)}),
    ]
    return everybody if mix == "fewer" else everybody[1:]


def unused_port() -> int:
    """Below those that systems give to outgoing connections: a server may bind it a minute from now."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(FlexiError):
            return free_port(port)
    raise FlexiError("of 100 ports between 20000 and 30000 none is free")


@contextmanager
def running(
    entrants: list[Contender], logs: Path, patience: float, say: Callable[[str], None] = print
) -> Iterator[dict[str, ContenderStart]]:
    """Start all contenders side by side, yield how that went by their names, and end them.

    Who is not ready in `patience` seconds, or stops, is ended at once, and has a fault; the others go on.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        pool = stack.enter_context(ThreadPoolExecutor(len(entrants)))

        def start(entrant: Contender) -> ContenderStart:
            port, log = unused_port(), logs / f"{entrant.name.replace(', ', '-')}.log"
            arguments = (*entrant.command, "--host", "127.0.0.1", "--port", str(port))
            begun, address, fault = monotonic(), f"http://127.0.0.1:{port}", None
            home = mkdtemp(prefix="home-", dir=logs.absolute())  # BentoML's starts empty each other's
            process = stack.enter_context(spawned(arguments, log, {"BENTOML_HOME": home, **entrant.environment}))
            try:
                wait_until_ready(address, process, log, patience)
            except FlexiError as error:
                fault = error.message
                end(process)
            seconds = monotonic() - begun
            say(f"{entrant.name}: {fault or f'ready after {seconds:.0f} s'}")
            return ContenderStart(address, seconds, fault)

        yield dict(zip([entrant.name for entrant in entrants], pool.map(start, entrants), strict=True))
