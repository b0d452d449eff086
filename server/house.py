"""Everything wired together, once: settings -> model, schedules, dispatcher, generation."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import torch

from engine.models import Model, load
from engine.policy import Oldest
from engine.waves import Row, Waves
from registry.address import open_store
from registry.catalog import Catalog
from registry.schedule import Schedule, Segment
from registry.signing import TrustedKeys
from server.admission import Admission
from server.config import Settings
from server.dispatch import Dispatcher
from server.generation import Generation
from server.lastgood import LastGood
from server.plan import Planner
from server.quota import Quotas
from server.schedules import Schedules
from server.watch import Watch

log = logging.getLogger(__name__)


@dataclass
class House:
    """A server that is open for requests."""

    model: Model
    schedules: Schedules
    dispatcher: Dispatcher
    generation: Generation
    settings: Settings
    following: asyncio.Task[None]
    opened: int = field(default_factory=lambda: int(time.time()))  # Unix time

    @property
    def size(self) -> str:
        """Of the images, as OpenAI writes it: width x height in pixels."""
        height, width = self.model.image_size
        return f"{width}x{height}"

    @property
    def default_tier(self) -> str:
        """What a request gets that names no tier."""
        return self.schedules.default(self.settings.default_tier)

    async def close(self) -> None:
        """Stop watching and working; requests still waiting fail with `NotReady`."""
        self.following.cancel()
        await asyncio.to_thread(self.dispatcher.close)


async def open_house(settings: Settings) -> House:
    """Load and warm the model, read the registry, start the engine's thread. The event loop stays free meanwhile."""
    model = await asyncio.to_thread(_load, settings)
    schedules, watch = _schedules(settings, model)
    while not await asyncio.to_thread(lambda: watch.refresh() or watch.restore()):  # without tiers it is of no use to anybody
        await asyncio.sleep(settings.watch_seconds)
    pace = await asyncio.to_thread(warm_up, model, (entry.schedule for entry in schedules.tiers()), settings.max_wave_rows)
    cache = None if settings.cache_mib is None else settings.cache_mib * 2**20
    admission = Admission(settings.max_queue_seconds, settings.max_key_queue_seconds or math.inf, pace)
    dispatcher = Dispatcher(model, admission, settings.max_wave_rows, cache)
    dispatcher.start()
    planner = Planner(schedules, model.macs, dispatcher.forecast, settings, guides=model.prompts.guides)
    generation = Generation(planner, dispatcher, Quotas(), settings.commit)
    return House(model, schedules, dispatcher, generation, settings, asyncio.create_task(watch.follow(settings.watch_seconds)))


def _load(settings: Settings) -> Model:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = load(
        settings.model, settings.device, settings.dtype, channels_last=settings.channels_last, compiled=settings.compile
    )
    about = {
        "model": model.ref.name,
        "fingerprint": model.ref.fingerprint,
        "device": str(model.device),
        "commit": settings.commit,
    }
    log.info("loaded", extra={"fields": about})

    return model


def _schedules(settings: Settings, model: Model) -> tuple[Schedules, Watch]:
    trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None

    @cache  # an error is not kept: the store may be down when the server starts
    def open_catalog() -> Catalog:
        return Catalog(open_store(settings.registry), model.ref.name, trusted=trusted)

    schedules = Schedules(open_catalog, model, settings.teacher_steps)
    return schedules, Watch(schedules, open_catalog, LastGood(settings.state, settings.registry, model.ref.name, trusted))


def warm_up(model: Model, schedules: Iterable[Schedule], max_wave_rows: int) -> float:
    """Run a short image through every kind of wave that these schedules need, with and without guidance; twice.

    Returns the seconds per MAC of the second time: a first idea of the pace, for admission.
    """
    branches = {segment.branch for schedule in schedules for segment in schedule.segments if segment.partial} or {1}
    segments = tuple(Segment(partial=(1,), branch=branch) for branch in sorted(branches))
    program = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 2 * len(segments)), segments=segments))
    condition, waves = model.encode([model.prompts.sample]), Waves(model.anatomy, model.slots(4), Oldest(max_wave_rows))
    for _ in range(2):
        rows = [Row(program, model.noise(0), condition)]
        if model.prompts.guides:
            rows.append(Row(program, model.noise(1), condition, 2.0, model.negative([""])))
        for row in rows:
            waves.add(row)
        start = time.monotonic()
        while waves.tick():
            pass
        for row in rows:
            if row.latent is None:
                raise row.error or AssertionError("a row that left has a latent or an error")
            model.decode(row.latent[None])
        seconds = time.monotonic() - start
    return seconds / sum(model.macs.of_program(program, row.slots_needed) for row in rows)
