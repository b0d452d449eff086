"""The peers' servers, each a process of its own on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.launch import free_port, spawned, wait_until_ready

READY = 400.0  # seconds: several import torch at once on two cores


@dataclass(frozen=True)
class Contender:
    """A server: its command up to the port, and its environment."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def body(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The request as this server wants it: BentoML's batches are lists, of one here."""
        if "loadtests.batcher:Batcher" in self.command:
            return {"requests": [wanted]}
        return wanted | {"guidance_scale": 1.0} if self.name == "ours" else wanted


def contenders(mix: str, simulated: bool, registry: Path, max_rows: int) -> list[Contender]:
    """The servers that compete on a mix. diffusers cannot run partial steps, so the naive server has no part in that mix."""
    shared = {"LOADTEST_SIMULATED": "1" if simulated else "", "LOADTEST_ROWS": str(max_rows), "LOADTEST_MIX": mix}
    bento = ("-m", "bentoml", "serve")
    ours = "loadtests.simulated_service:Flexiffusion" if simulated else "server.service:Flexiffusion"
    settings = {"FLEXI_REGISTRY": str(registry), "FLEXI_MAX_WAVE_ROWS": str(max_rows)}
    everybody = [
        Contender("naive", ("-m", "uvicorn", "loadtests.naive:app", "--log-level", "warning"), shared),
        Contender("batcher", (*bento, "loadtests.batcher:Batcher"), shared | {"LOADTEST_BATCHING": "grouped"}),
        Contender("batcher, together", (*bento, "loadtests.batcher:Batcher"), shared | {"LOADTEST_BATCHING": "together"}),
        Contender("ours", (*bento, ours), settings),
    ]
    return everybody if mix == "fewer" else everybody[1:]


@contextmanager
def running(entrants: list[Contender], logs: Path) -> Iterator[dict[str, str]]:
    """Start all contenders, wait until they are ready, yield their addresses by name, and end them."""
    logs.mkdir(parents=True, exist_ok=True)
    addresses: dict[str, str] = {}
    with ExitStack() as stack:
        processes = {}
        for entrant in entrants:
            port, log = free_port(0), logs / f"{entrant.name.replace(', ', '-')}.log"
            arguments = (*entrant.command, "--host", "127.0.0.1", "--port", str(port))
            addresses[entrant.name] = f"http://127.0.0.1:{port}"
            processes[entrant.name] = stack.enter_context(spawned(arguments, log, entrant.environment)), log
        for name, (process, log) in processes.items():
            wait_until_ready(addresses[name], process, log, READY)
        yield addresses
