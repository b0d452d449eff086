"""Closed-loop clients: each waits for its answer before it asks again, so there are as many requests under way as clients."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx

from loadtests.mixes import TIERS, draw

PROMPTS = ("red heart", "cat face", "tomato", "sunflower", "tiger face", "hamburger")
TIMEOUT = 600.0  # seconds; a slow peer is to be measured, not given up


@dataclass
class Tally:
    """What was answered between the warm-up and the end. Latencies in seconds, by tier."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {tier: [] for tier in TIERS})
    errors: int = 0

    def __add__(self, other: Tally) -> Tally:
        """The tally of two windows together."""
        latencies = {tier: self.latencies[tier] + other.latencies[tier] for tier in TIERS}
        return Tally(self.seconds + other.seconds, latencies, self.errors + other.errors)

    @property
    def requests(self) -> int:
        """How many requests were answered within the window."""
        return sum(map(len, self.latencies.values()))

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0


Body = Callable[[dict[str, Any]], dict[str, Any]]


async def drive(address: str, body: Body, clients: int, warm_up: float, seconds: float, seed: int) -> Tally:
    """Let so many clients ask for `warm_up` and then for `seconds`; requests under way at the end are waited for, not counted.

    `body` puts a request into the server's own form. Equal seeds draw equal tiers, prompts and seeds for each client.
    """
    tally, begin = Tally(seconds), monotonic() + warm_up
    end = begin + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, limits=limits) as http:

        async def client(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            while (start := monotonic()) < end:
                tier = draw(chance)
                wanted = {"prompt": chance.choice(PROMPTS), "tier": tier, "seed": chance.randrange(2**31)}
                reply = await http.post("/generate", json=body(wanted))
                if begin <= (now := monotonic()) < end:
                    if reply.status_code == 200:
                        tally.latencies[tier].append(now - start)
                    else:
                        tally.errors += 1
                if reply.status_code != 200:
                    await asyncio.sleep(1)  # a server that refuses is not to be flooded

        await asyncio.gather(*map(client, range(clients)))
    return tally
