"""Everything wired together, once: settings -> model, schedules, dispatcher, generation."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from engine.models import Model, load
from engine.policy import FCFS
from engine.waves import DenoisingTask, Waves
from evaluation import extractor
from registry.catalog import Catalog
from registry.experiments.catalog import Experiments
from registry.schedule import Schedule, Segment
from registry.signing import TrustedKeys
from registry.stores.address import open_store
from server.access.quota import Quotas
from server.batching.admission import Admission
from server.batching.engine_thread import EngineThread
from server.config import Settings
from server.experiments.active import ActiveExperiments
from server.experiments.recorder import Recorder
from server.experiments.runtime import ExperimentRuntime
from server.requests.generation import Generation
from server.requests.plan import Planner
from server.requests.shadow import ShadowTeacher
from server.tiers.active import REFERENCE, Schedules
from server.tiers.last_good import LastGood, name_of
from server.tiers.watch import Watch

log = logging.getLogger(__name__)


@dataclass
class App:
    """A server that is open for requests."""

    model: Model
    schedules: Schedules
    dispatcher: EngineThread
    generation: Generation
    settings: Settings
    trials: ExperimentRuntime
    shadow: ShadowTeacher
    following: list[asyncio.Task[None]]
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
        for task in self.following:
            task.cancel()
        self.shadow.close()
        await asyncio.to_thread(self.dispatcher.close)
        await asyncio.to_thread(self.trials.close)


async def open_app(settings: Settings) -> App:
    """Load and warm the model, read the registry, start the engine's thread. The event loop stays free meanwhile."""
    model = await asyncio.to_thread(_load, settings)
    opener = _Opener(settings, model)
    schedules = Schedules(lambda: opener.catalog, model, settings.teacher_steps)
    last_good = LastGood(settings.state, settings.registry, model.ref.name, opener.trusted)
    watch = Watch(schedules, lambda: opener.catalog, last_good)
    while not await asyncio.to_thread(lambda: watch.refresh() or watch.restore()):  # without tiers it is of no use to anybody
        await asyncio.sleep(settings.watch_seconds)
    pace = await asyncio.to_thread(warm_up, model, (entry.schedule for entry in schedules.tiers()), settings.max_wave_rows)
    cache = None if settings.cache_mib is None else settings.cache_mib * 2**20
    admission = Admission(settings.max_queue_seconds, settings.max_key_queue_seconds or math.inf, pace)
    dispatcher = EngineThread(model, admission, settings.max_wave_rows, cache)
    dispatcher.start()
    trials = _trials(settings, opener, model, schedules)
    planner = Planner(schedules, trials.live, model.macs, dispatcher.forecast, settings, guides=model.prompts.guides)
    shadow = await asyncio.to_thread(_shadow, settings, dispatcher, schedules, trials)
    generation = Generation(planner, dispatcher, Quotas(), [trials, shadow], settings.commit)
    following = [asyncio.create_task(each.follow(settings.watch_seconds)) for each in (watch, trials)]
    return App(model, schedules, dispatcher, generation, settings, trials, shadow, following)


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


class _Opener:
    """The catalog, once the store could be opened: it may be down when the server starts."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None
        self._address, self._model = settings.registry, model.ref.name

    @cached_property
    def catalog(self) -> Catalog:
        """Raises what is wrong with the store; an error is not kept."""
        return Catalog(open_store(self._address), self._model, trusted=self.trusted)

    @cached_property
    def experiments(self) -> Experiments:
        """The same."""
        return Experiments(self.catalog.store, self._model)


def _trials(settings: Settings, opener: _Opener, model: Model, schedules: Schedules) -> ExperimentRuntime:
    outbox = settings.state / "outbox" / name_of(settings.registry, model.ref.name)
    recorder = Recorder(lambda: opener.catalog.store, model.ref.name, outbox)
    recorder.start()
    live = ActiveExperiments(lambda: opener.experiments, schedules)
    return ExperimentRuntime(live, recorder, lambda: opener.experiments, shadowed=settings.shadow_share > 0)


def _shadow(settings: Settings, dispatcher: EngineThread, schedules: Schedules, trials: ExperimentRuntime) -> ShadowTeacher:
    """Loads the feature extractor where one is wanted."""
    features = None
    if settings.shadow_share and settings.features:
        features = extractor(settings.features, settings.device).images
    budget = settings.shadow_macs_per_minute
    return ShadowTeacher(dispatcher, lambda: schedules.tier(REFERENCE), features, settings.shadow_share, budget, [trials])


def warm_up(model: Model, schedules: Iterable[Schedule], max_wave_rows: int) -> float:
    """Run a short image through every kind of wave that these schedules need, with and without guidance; twice.

    Returns the seconds per MAC of the second time: a first idea of the pace, for admission.
    """
    branches = {segment.branch for schedule in schedules for segment in schedule.segments if segment.partial} or {1}
    segments = tuple(Segment(partial=(1,), branch=branch) for branch in sorted(branches))
    program = model.compile(Schedule(model=model.ref, solver=model.solver("ddim", 2 * len(segments)), segments=segments))
    condition, waves = model.encode([model.prompts.sample]), Waves(model.network, model.slots(4), FCFS(max_wave_rows))
    for _ in range(2):
        rows = [DenoisingTask(program, model.noise(0), condition)]
        if model.prompts.guides:
            rows.append(DenoisingTask(program, model.noise(1), condition, 2.0, model.negative([""])))
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
