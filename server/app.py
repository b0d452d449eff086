"""The composition of a server, once: settings -> model, schedules in force, engine's thread, generation, experiments."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch

from engine import compiling
from engine.config import reason
from engine.device import exclusive, lost
from engine.graphs import graphs_for
from engine.image_size import ImageSize
from engine.loading import load
from engine.model import Model
from evaluation import extractor
from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput
from registry.experiments.catalog import ExperimentCatalog
from registry.signing import TrustedKeys
from registry.stores.address import open_store
from registry.stores.base import ObjectStore
from registry.tiers import REFERENCE
from server.access.quota import Quotas
from server.api import RequestWarning
from server.batching.admission import Admission
from server.batching.engine_thread import EngineThread
from server.config import Settings, refusal
from server.experiments.active import ActiveExperiments
from server.experiments.recorder import Recorder
from server.experiments.runtime import ExperimentRuntime
from server.jobs import job_store
from server.jobs.job_run import JobRun
from server.jobs.job_store import JobStore
from server.jobs.jobs import JobLimits, Jobs
from server.jobs.leftovers import Leftovers
from server.jobs.runner import JobRunner
from server.jobs.webhooks import WebhookSender
from server.requests.generation import Generation
from server.requests.plan import Planner
from server.requests.shadow import ShadowTeacher
from server.requests.warnings import said
from server.storage import kept_files
from server.storage.async_store import AsyncStore
from server.storage.kept_files import KeptFiles
from server.storage.sweeper import Sweeper
from server.telemetry import metrics
from server.telemetry.start import Start
from server.tiers.active import ActiveSchedules
from server.tiers.last_good import LastGood, name_of
from server.tiers.model_names import ModelNames
from server.tiers.warnings import in_one_line, tier_warnings
from server.tiers.watch import Watch
from server.webhook_signature import webhook_secret

log = logging.getLogger(__name__)

TEACHER_STEPS = 50  # of a model that was not distilled


@dataclass
class App:
    """A server that is open for requests."""

    model: Model
    schedules: ActiveSchedules
    engine_thread: EngineThread
    generation: Generation
    settings: Settings
    experiments: ExperimentRuntime
    shadow: ShadowTeacher
    files: KeptFiles
    jobs: Jobs
    storage: AsyncStore
    following: list[asyncio.Task[None]]
    opened: int = field(default_factory=lambda: int(time.time()))  # Unix time

    @property
    def model_names(self) -> list[str]:
        """What clients may call the model: its own name first."""
        own = self.model.ref.name
        return [own, *(alias for alias in self.settings.model_aliases if alias != own)]

    @property
    def queue_seconds(self) -> str:
        """Predicted seconds of all the work in the engine, as a header says them."""
        return f"{self.engine_thread.queue_seconds:.3f}"

    @property
    def default_tier(self) -> str:
        """What a request gets that names no tier."""
        return self.schedules.default(self.settings.default_tier)

    @property
    def warnings(self) -> list[RequestWarning]:
        """What the model's folder asks for and nobody does, and the tiers that are not served."""
        return said([*self.model.notices, *tier_warnings(self.schedules, self.settings.default_tier)])

    async def close(self) -> None:
        """Stop watching and working; requests still waiting fail with `NotReady`."""
        for task in self.following:
            task.cancel()
        self.shadow.close()
        await self.jobs.runner.close()
        await asyncio.to_thread(self.engine_thread.close)
        await asyncio.to_thread(self.experiments.close)
        self.storage.close()


async def open_app(settings: Settings, waits: Callable[[str], None], start: Start) -> App:
    """Load and warm the model, read the registry, start the engine's thread. The event loop stays free meanwhile.

    `waits` is told what is waited for, as a clause, `start` what is done. Raises whatever makes this impossible: see `why`.
    """
    waits("the model is loading")
    open_once = cache(lambda: open_store(settings.registry))  # an error is not kept
    model = await asyncio.to_thread(_load, settings)
    start.passed("load")
    others = _other_sizes(settings, model)
    trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None
    names = ModelNames(model, open_once, (settings.state, settings.registry), trusted)
    if settings.compiled:
        waits("the model is compiled, which takes minutes unless FLEXI_COMPILE_CACHE holds it")
        await asyncio.to_thread(_compile, settings, model, others)
        start.passed("compile")
    while (name := settings.model_name or await asyncio.to_thread(names.find)) is None:
        waits(names.fault or "the registry is read")
        await asyncio.sleep(settings.watch_seconds)
    model = replace(model, ref=model.ref.model_copy(update={"name": name}))
    registry = _Registry(settings, name, open_once, trusted)
    schedules = ActiveSchedules(lambda: registry.catalog, model, teacher_steps(settings, model), others)
    watch = Watch(schedules, lambda: registry.catalog, registry.last_good, settings.default_tier, names.elsewhere)

    def has_tiers() -> bool:
        """Without an answer of the registry, or a kept one, a server is of no use to anybody."""
        return (watch.refresh() or watch.restore()) and bool(schedules.served() or not settings.require_tiers)

    while not await asyncio.to_thread(has_tiers):
        unserved = in_one_line(tier_warnings(schedules, settings.default_tier))
        waits(watch.fault or f"FLEXI_REQUIRE_TIERS wants a tier of the registry: {unserved}")
        await asyncio.sleep(settings.watch_seconds)
    start.passed("registry")
    waits("the model is warming up")
    engine_thread = await asyncio.to_thread(_engine_thread, settings, model, schedules, others)
    start.passed("warm_up")
    experiments = _experiments(settings, registry, schedules)
    shadow = await asyncio.to_thread(_shadow, settings, engine_thread, schedules, experiments)
    planner = Planner(schedules, experiments.active, model, engine_thread.forecast, settings, others)
    if overruled := planner.default_guidance.overruled():
        log.warning("%s", overruled)
    generation = Generation(planner, engine_thread, Quotas(), [experiments, shadow], settings.commit)
    storage = AsyncStore(open_once)
    following = [asyncio.create_task(follower.follow(settings.watch_seconds)) for follower in (watch, experiments)]
    files = KeptFiles(storage)
    jobs = _jobs(settings, storage, files, generation, engine_thread)
    if settings.max_jobs:
        following.append(asyncio.create_task(jobs.runner.follow(settings.watch_seconds)))
    sweeper = Sweeper(storage, [kept_files.FOLDER, job_store.OPEN, job_store.ENDED], [Leftovers(storage).sweep])
    following.append(asyncio.create_task(sweeper.follow()))
    return App(model, schedules, engine_thread, generation, settings, experiments, shadow, files, jobs, storage, following)


def why(error: Exception) -> str:
    """Why the app could not be opened, in one line; what nobody expected is logged with its traceback."""
    if isinstance(error, FlexiError):
        return refusal(error)
    if lost(error):
        return f"the device is lost: {reason(error)}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"the model and its slots need more memory than there is: {reason(error)}"
    log.error("the server cannot start", exc_info=error)
    return f"{type(error).__name__}: {reason(error)}"


class _Registry:
    """One model's part of the registry, once the store could be opened: it may be down when the server starts."""

    def __init__(
        self, settings: Settings, model: str, open_once: Callable[[], ObjectStore], trusted: TrustedKeys | None
    ) -> None:
        self.model = model
        self.last_good = LastGood(settings.state, settings.registry, model, trusted)
        self._open, self._trusted = open_once, trusted

    @cached_property
    def catalog(self) -> Catalog:
        """Raises what is wrong with the store; an error is not kept."""
        return Catalog(self._open(), self.model, trusted=self._trusted)

    @cached_property
    def experiments(self) -> ExperimentCatalog:
        """Raises what `catalog` raises."""
        return ExperimentCatalog(self.catalog.store, self.model)


def _load(settings: Settings) -> Model:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.compiled:
        compiling.cache_in(settings.compile_cache)
    model = load(settings.model, settings.device, settings.dtype, settings.model_name, compiled=settings.compiled)
    fields = {"model": model.ref.name, "fingerprint": model.ref.fingerprint, "device": str(model.device)}
    log.info("loaded", extra={"fields": fields | {"commit": settings.commit}})
    return model


def _other_sizes(settings: Settings, model: Model) -> list[ImageSize]:
    """Those beside the model's own that requests may ask for. Raises `InvalidInput` for one that the model cannot make."""
    try:
        return model.other_sizes(settings.sizes)
    except InvalidInput as error:
        raise InvalidInput(error.text, param="sizes") from error


def _compile(settings: Settings, model: Model, others: Collection[ImageSize] = ()) -> None:
    """All that will ever run, so that nobody waits for a compiler later: what it missed is an error from now on."""
    compiled = compiling.warm(model, settings.max_wave_rows, others=others)
    size = compiling.cache_bytes(settings.compile_cache)
    compiling.forbid()
    metrics.compile_seconds.set(compiled.seconds)
    metrics.compiled_graphs.labels("hit").set(compiled.cached)
    metrics.compiled_graphs.labels("miss").set(compiled.graphs - compiled.cached)
    metrics.compile_cache_bytes.set(size)
    fields = {"graphs": compiled.graphs, "cached": compiled.cached, "seconds": round(compiled.seconds, 1), "cache_bytes": size}
    log.info("compiled", extra={"fields": fields})


def teacher_steps(settings: Settings, model: Model) -> int:
    """Of the `reference` that is made up here: what is set, or what a distilled model was taught."""
    steps = settings.teacher_steps or model.few_steps or TEACHER_STEPS
    if model.few_steps and steps != model.few_steps:
        taught = f"the model was distilled to {model.few_steps}: `reference` is not the model as it was meant"
        log.warning("FLEXI_TEACHER_STEPS is %d, and %s", steps, taught)
    return steps


def _engine_thread(settings: Settings, model: Model, schedules: ActiveSchedules, others: Collection[ImageSize]) -> EngineThread:
    admission = Admission(settings.max_queue_seconds, settings.max_key_queue_seconds or math.inf)
    cache = None if settings.cache_mib is None else settings.cache_mib * 2**20
    graphs = graphs_for(model.device) if settings.cuda_graphs else None
    engine_thread = EngineThread(model, admission, settings.max_wave_rows, cache, graphs, others)
    engine_thread.start(entry.schedule for entry in schedules.tiers())
    schedules.prepare = engine_thread.prepare
    return engine_thread


def _experiments(settings: Settings, registry: _Registry, schedules: ActiveSchedules) -> ExperimentRuntime:
    outbox = settings.state / "outbox" / name_of(settings.registry, registry.model)
    recorder = Recorder(lambda: registry.catalog.store, registry.model, outbox)
    recorder.start()
    active = ActiveExperiments(lambda: registry.experiments, schedules)
    return ExperimentRuntime(active, recorder, lambda: registry.experiments, shadowed=settings.shadow_share > 0)


def _jobs(
    settings: Settings, storage: AsyncStore, files: KeptFiles, generation: Generation, engine_thread: EngineThread
) -> Jobs:
    """As many run at once as fill two waves without guidance: one is at work while the next is encoded."""
    secret, private = settings.webhook_secret, settings.webhook_private
    webhooks = WebhookSender(webhook_secret(secret.get_secret_value()), private) if secret else None
    store, run = JobStore(storage), JobRun(generation.answer, files)
    runner = JobRunner(store, run, webhooks, settings.max_wave_rows, settings.job_lease_seconds)
    limits = JobLimits(settings.max_jobs, settings.job_seconds, settings.job_keep_seconds)
    return Jobs(store, runner, run, limits, webhooks is not None, private, lambda: engine_thread.background)


def _shadow(
    settings: Settings, engine_thread: EngineThread, schedules: ActiveSchedules, experiments: ExperimentRuntime
) -> ShadowTeacher:
    """Loads the feature extractor where one is wanted."""
    features = None
    if settings.shadow_share and settings.features:
        with exclusive():
            features = extractor(settings.features, settings.device).images
    budget = settings.shadow_macs_per_minute
    return ShadowTeacher(
        engine_thread, lambda: schedules.tier(REFERENCE), features, settings.shadow_share, budget, [experiments]
    )
