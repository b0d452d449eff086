"""A long run of everything at once: mixed tiers, streams, hang-ups, nonsense, alias moves, S3 away and back.

    python -m loadtests.soak --minutes 20

Exit code 1, and a line for each violation, when there was a 5xx other than 503 with Retry-After, or a status not due, when
less than nine in ten of those who wait got their images, when a stream ended without its images, when memory grew by more than
2 % after the warm-up, or when an image of the same schedule, prompt, seed and guidance came with pixels more than one level of
255 from what they were (rounding in other company, docs/decisions.md); with any other pixels, when it was alone both times.
Needs the dev dependencies: the registry is on a real S3 server.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Coroutine, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import psutil

from examples.launch import FOR_SMALL_MODELS, started
from loadtests import exported, visitors
from loadtests.mixes import MODEL, mixes
from loadtests.soak_record import SoakRecord
from registry.catalog import Catalog
from registry.commands.command_line import argument_parser, run_program
from registry.errors import StoreUnavailable
from registry.stores.address import open_store
from tests.support.seaweed import run_seaweed

OUT = Path(".flexi/soak")
CROWD: dict[visitors.Visitor, int] = {
    visitors.wait: 6,
    visitors.follow: 2,
    visitors.leave: 2,
    visitors.talk_nonsense: 1,
}
SAMPLE_SECONDS, MOVE_SECONDS = 1.0, 5.0
MOVED = "draft"


def main() -> int:
    """Run it and return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--calm", type=float, default=45.0, help="seconds between two outages of the store")
    parser.add_argument("--away", type=float, default=45.0, help="of an outage; the service's S3 client tries for less")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments, record = parser.parse_args(), SoakRecord()
    with run_seaweed() as s3:
        store = next(child for child in psutil.Process().children(recursive=True) if child.name() == "weed")
        os.environ.update(s3.environment())  # for the catalog below; the service inherits it
        registry = f"s3://{s3.bucket}/soak"
        first, second = mixes()["partial"], mixes()["fewer"]
        second.publish(registry)
        first.publish(registry)
        digests = sorted({schedule.digest for mix in (first, second) for schedule in mix.schedules.values()})
        turns = [mix.schedules[MOVED].digest for mix in (second, first)]
        settings = {"FLEXI_REGISTRY": registry, "FLEXI_WATCH_SECONDS": "1", "FLEXI_STATE": str(arguments.out / "state")}
        settings |= FOR_SMALL_MODELS
        with started(settings, arguments.out / "server.log") as served:
            family = psutil.Process(served.supervisor.pid).children(recursive=True)
            workers = [child for child in family if "_bentoml_impl.worker.service" in child.cmdline()]
            end = monotonic() + 60 * arguments.minutes
            outages = suffer(store, record, arguments.calm, arguments.away)
            catalog = Catalog(open_store(registry), MODEL.name, author="soak")
            besides = (move(catalog, MOVED, turns, record), outages, watch(workers, record))
            asyncio.run(soak(served.address, digests, record, end, *besides))
    print(record.summary())
    broken = record.verdict()
    for line in broken:
        print(f"VIOLATION: {line}")
    print("the soak held" if not broken else f"{len(broken)} violations")
    return 1 if broken else 0


async def soak(
    address: str, digests: Sequence[str], record: SoakRecord, end: float, *besides: Coroutine[Any, Any, None]
) -> None:
    """Let the crowd come until `end` and the rest happen besides; then somebody comes alone."""
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:

        async def visit(kind: visitors.Visitor, chance: random.Random) -> None:
            try:
                await kind(http, record, digests, chance)
            except httpx.TransportError as error:
                record.violations.append(f"no answer: {type(error).__name__}")
                await asyncio.sleep(1)

        async def keep_coming(kind: visitors.Visitor, number: int) -> None:
            chance = random.Random(number)
            while monotonic() < end:
                await visit(kind, chance)

        tasks = [asyncio.create_task(beside) for beside in besides]
        kinds = [kind for kind, count in CROWD.items() for _ in range(count)]
        await asyncio.gather(*(keep_coming(kind, number) for number, kind in enumerate(kinds)))
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                record.violations.append(f"the soak itself: {ended!r}")
        await asyncio.to_thread(exported.wait_until_idle, address)
        await visit(visitors.come_alone, random.Random(len(kinds)))


async def move(catalog: Catalog, tier: str, digests: Sequence[str], record: SoakRecord) -> None:
    """Let a tier mean one schedule, then another, then roll back; a store that is away is no violation."""
    for turn in count():
        await asyncio.sleep(MOVE_SECONDS)
        step = turn % 3
        try:
            if step < 2:
                await asyncio.to_thread(catalog.promote, tier, digests[step])
            else:
                await asyncio.to_thread(catalog.rollback, tier)
            record.moves += 1
        except StoreUnavailable:
            pass


async def suffer(store: psutil.Process, record: SoakRecord, calm: float, away: float) -> None:
    """Take the store away, as a network does that swallows packets, and give it back."""
    try:
        while True:
            await asyncio.sleep(calm)
            store.suspend()
            record.outages += 1
            await asyncio.sleep(away)
            store.resume()
    finally:
        store.resume()


async def watch(workers: Sequence[psutil.Process], record: SoakRecord) -> None:
    """Sample the workers' resident memory."""
    while True:
        record.resident.append(sum(worker.memory_info().rss for worker in workers))
        await asyncio.sleep(SAMPLE_SECONDS)


if __name__ == "__main__":
    run_program(main)
