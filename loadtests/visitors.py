"""Who comes during a soak: those who wait, those who leave, those who ask for nonsense."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from loadtests.clients import PROMPTS
from loadtests.mixes import draw
from loadtests.witness import Witness

SEEDS = 6  # so few that images repeat
PATIENCE = (0.02, 1.5)  # seconds, of those who leave
NONSENSE: tuple[tuple[int, bytes], ...] = (  # status that is due, body
    (400, b"{"),
    (400, b"{}"),
    (400, b'{"prompt": "cat", "seed": -1}'),
    (400, b'{"prompt": "cat", "unknown": 1}'),
    (400, b'{"prompt": "' + b"x" * 1001 + b'"}'),
    (400, b'{"prompt": "cat", "tier": "draft", "schedule": "1"}'),
    (404, b'{"prompt": "cat", "tier": "nosuch"}'),
    (404, b'{"prompt": "cat", "schedule": "' + b"f" * 64 + b'"}'),
    (413, b'{"prompt": "' + b"x" * 70_000 + b'"}'),
)


Visitor = Callable[[httpx.AsyncClient, Witness, Sequence[str], random.Random], Coroutine[Any, Any, None]]


async def wait(http: httpx.AsyncClient, witness: Witness, digests: Sequence[str], chance: random.Random) -> None:
    """Ask for one image by tier or by digest, and hold its pixels to those it had before."""
    wanted = order(digests, chance)
    reply = await http.post("/generate", json=wanted)
    if not witness.answered("waits", reply.status_code, reply.headers.get("Retry-After")):
        await asyncio.sleep(1)
        return
    answer = reply.json()
    for i, png in enumerate(answer["images"]):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        decides = (answer["schedule"], wanted["prompt"], wanted["seed"] + i, wanted["guidance_scale"])
        witness.drawn(decides, pixels)


async def leave(http: httpx.AsyncClient, witness: Witness, digests: Sequence[str], chance: random.Random) -> None:
    """Ask, and close the connection in the middle."""
    try:
        reply = await http.post("/generate", json=order(digests, chance), timeout=chance.uniform(*PATIENCE))
        witness.answered("leaves", reply.status_code, reply.headers.get("Retry-After"))
    except httpx.TimeoutException:
        witness.statuses["leaves", 0] += 1


async def talk_nonsense(http: httpx.AsyncClient, witness: Witness, digests: Sequence[str], chance: random.Random) -> None:
    """Send a bad request, and expect to be told so."""
    status, body = chance.choice(NONSENSE)
    reply = await http.post("/generate", content=body, headers={"content-type": "application/json"})
    witness.answered("talks nonsense", reply.status_code, reply.headers.get("Retry-After"), status)
    await asyncio.sleep(0.2)


def order(digests: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """One request: mostly by tier, sometimes by a digest, of which not all are in force."""
    seed = chance.randrange(SEEDS)
    choice = {"schedule": chance.choice(digests)} if chance.random() < 0.2 else {"tier": draw(chance)}
    guidance = chance.choice((1.0, 3.0))
    return {
        "prompt": PROMPTS[seed],
        "seed": seed,
        "num_images": chance.choice((1, 1, 2)),
        "guidance_scale": guidance,
        **choice,
    }
