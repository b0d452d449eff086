"""Who comes during a soak: those who wait, who leave, who follow a stream, who ask for nonsense; and afterwards one alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtests.clients import PROMPTS
from loadtests.mixes import draw
from loadtests.soak_record import SoakRecord

SEEDS = 6  # so few that images repeat
PATIENCE = (0.02, 1.5)  # seconds, of those who leave
MOVES_AWAY = 0.3  # of those who follow a stream
GENERATE, IMAGES, FEEDBACK = "/generate", "/v1/images/generations", "/v1/feedback"
NONSENSE: tuple[tuple[str, int, bytes], ...] = (  # path, status that is due, body
    (GENERATE, 400, b"{"),
    (GENERATE, 400, b"{}"),
    (GENERATE, 400, b'{"prompt": "cat", "seed": -2}'),
    (GENERATE, 400, b'{"prompt": "cat", "unknown": 1}'),
    (GENERATE, 400, b'{"prompt": "' + b"x" * 4001 + b'"}'),
    (GENERATE, 400, b'{"prompt": "cat", "tier": "draft", "schedule": "1"}'),
    (GENERATE, 404, b'{"prompt": "cat", "tier": "nosuch"}'),
    (GENERATE, 404, b'{"prompt": "cat", "schedule": "' + b"f" * 64 + b'"}'),
    (IMAGES, 413, b'{"prompt": "' + b"x" * 140_000 + b'"}'),
    (IMAGES, 400, b"["),
    (IMAGES, 400, b'{"prompt": "cat", "quality": "lurid"}'),
    (IMAGES, 400, b'{"prompt": "cat", "partial_images": 2}'),
    (IMAGES, 400, b'{"prompt": "cat", "size": "9x9", "stream": true}'),
    (IMAGES, 404, b'{"prompt": "cat", "tier": "nosuch", "stream": true}'),
    (FEEDBACK, 400, b'{"request_id": "r1", "rating": 7}'),
    (FEEDBACK, 400, b'{"request_id": "", "rating": 1}'),
    (FEEDBACK, 413, b'{"request_id": "' + b"x" * 140_000 + b'", "rating": 1}'),
)

Visitor = Callable[[httpx.AsyncClient, SoakRecord, Sequence[str], random.Random], Coroutine[Any, Any, None]]


async def wait(http: httpx.AsyncClient, record: SoakRecord, digests: Sequence[str], chance: random.Random) -> None:
    """Ask for one image by tier or by digest, and hold its pixels to those it had before."""
    wanted = request_body(digests, chance)
    reply = await http.post(GENERATE, json=wanted)
    if not record.answered("waits", reply.status_code, reply.headers.get("Retry-After")):
        await asyncio.sleep(1)
        return
    answer = reply.json()
    for i, png in enumerate(answer["images"]):
        record.drawn(image_key(answer["schedule"], wanted, i), decode(png))


async def follow(http: httpx.AsyncClient, record: SoakRecord, digests: Sequence[str], chance: random.Random) -> None:
    """Ask for images as events, with previews; sometimes go after the first one, else hold the pixels to those of before."""
    wanted = request_body(digests, chance)
    images = wanted["n"] = wanted.pop("num_images")
    goes, kinds, pictures, schedule = chance.random() < MOVES_AWAY, Counter[str](), dict[int, NDArray[np.uint8]](), ""
    async with http.stream("POST", IMAGES, json=wanted | {"stream": True, "partial_images": 2}) as reply:
        if not record.answered("follows", reply.status_code, reply.headers.get("Retry-After")):
            await asyncio.sleep(1)
            return
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if goes:
                record.moved_away += 1
                return
            event = json.loads(line.removeprefix("data: "))
            kinds[event["type"]] += 1
            if event["type"] == "image_generation.completed":
                pictures[event["image_index"]] = decode(event["b64_json"])
                schedule = event.get("request", {}).get("schedule", schedule)
    record.streamed(kinds, images)
    for i, pixels in pictures.items():
        record.drawn(image_key(schedule, wanted, i), pixels)


async def leave(http: httpx.AsyncClient, record: SoakRecord, digests: Sequence[str], chance: random.Random) -> None:
    """Ask, and close the connection in the middle."""
    try:
        reply = await http.post(GENERATE, json=request_body(digests, chance), timeout=chance.uniform(*PATIENCE))
        record.answered("leaves", reply.status_code, reply.headers.get("Retry-After"))
    except httpx.TimeoutException:
        record.statuses["leaves", 0] += 1


async def talk_nonsense(http: httpx.AsyncClient, record: SoakRecord, digests: Sequence[str], chance: random.Random) -> None:
    """Send a bad request, and expect to be told so."""
    path, status, body = chance.choice(NONSENSE)
    reply = await http.post(path, content=body, headers={"content-type": "application/json"})
    record.answered("talks nonsense", reply.status_code, reply.headers.get("Retry-After"), status)
    await asyncio.sleep(0.2)


async def come_alone(http: httpx.AsyncClient, record: SoakRecord, digests: Sequence[str], chance: random.Random) -> None:
    """With nobody else there, ask for some images by each schedule twice: their pixels must be the same bit for bit."""
    for digest in digests:
        wanted = request_body((), chance) | {"tier": None, "schedule": digest}
        pair = [await http.post(GENERATE, json=wanted) for _ in range(2)]
        served = [record.answered("alone", reply.status_code, reply.headers.get("Retry-After")) for reply in pair]
        if all(served):
            record.alone(wanted, *(np.stack([decode(png) for png in reply.json()["images"]]) for reply in pair))


def image_key(schedule: str, wanted: dict[str, Any], image: int) -> tuple[Any, ...]:
    """All that decides the pixels of one image of a request: schedule, prompt, seed and guidance."""
    return schedule, wanted["prompt"], wanted["seed"] + image, wanted["guidance_scale"]


def decode(png: str) -> NDArray[np.uint8]:
    """The pixels of a PNG file in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def request_body(digests: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """One request: mostly by tier, sometimes by a digest, if there are any; not all of them are in force."""
    seed = chance.randrange(SEEDS)
    choice = {"schedule": chance.choice(digests)} if digests and chance.random() < 0.2 else {"tier": draw(chance)}
    guidance = chance.choice((1.0, 3.0))
    return {
        "prompt": PROMPTS[seed],
        "seed": seed,
        "num_images": chance.choice((1, 1, 2)),
        "guidance_scale": guidance,
        **choice,
    }
