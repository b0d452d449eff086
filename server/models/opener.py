"""The composition of a model that is served, once: settings -> schedules in force, engine, generation, experiments."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property

import torch

from engine import compiling
from engine.device import exclusive
from engine.graphs import graphs_for
from engine.model import Model
from engine.model_name import folder_name
from engine.prompt_syntax import PLAIN
from evaluation import extractor
from registry.errors import InvalidInput
from registry.signing import TrustedKeys
from registry.stores.address import open_store
from server.access.quota import Quotas
from server.batching.admission import Admission
from server.batching.device_thread import DeviceThread
from server.batching.intake import no_loras
from server.batching.memory import bytes_within
from server.batching.model_engine import FULL_WAVES, ModelEngine
from server.config import Settings
from server.errors import NotReady
from server.loras.lora_folder import LoraFolder
from server.marking.marker import marker_of
from server.model_folders import ModelFolder
from server.models.adapter_sets import AdapterSets
from server.models.learning import learning
from server.models.loading import compile_model, memory_for_models, other_sizes, prompt_chunks, read, teacher_steps, why
from server.models.model_registry import ModelRegistry
from server.models.residence import RETRY, Residence, Resident, free_memory
from server.models.served_model import ModelParts, ServedModel
from server.operator_events.announcer import announcer_of
from server.operator_events.registry_events import RegistryEvents
from server.requests.fidelity import Extractor
from server.requests.generation import Generation, Residency
from server.requests.image_files import ImageFiles
from server.requests.lora_choice import LoraChoice
from server.requests.planner import Planner
from server.requests.prompt_pair import PromptReader
from server.requests.repeats import Repeats
from server.telemetry import metrics
from server.telemetry.served import begin as served_as
from server.telemetry.served import serving
from server.telemetry.start import Start
from server.tiers.active import ActiveSchedules
from server.tiers.looks import look
from server.tiers.model_names import ModelNames
from server.tiers.observer import RegistryObserver
from server.tiers.warnings import in_one_line, tier_warnings
from server.tiers.watch import Watch

log = logging.getLogger(__name__)


class ModelOpener:
    """Makes a server's models of folders, with what they share: the registry's store, thread, admission, quotas, memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device_thread = DeviceThread()
        self.open_once = cache(lambda: open_store(settings.registry))  # an error is not kept
        self._trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None
        self.announcer = announcer_of(settings, self.open_once)
        self._quotas = Quotas()
        most, across_keys = settings.repeats_mib * 2**20, settings.repeats_across_keys
        self.repeats = Repeats(most, settings.repeats_seconds, across_keys=across_keys) if most else None
        marker = marker_of(settings)
        if marker:
            marker.export()
        self._files = ImageFiles(settings.commit, marker, shows_prompt=settings.marking_prompt)
        self._cache = None if settings.cache_mib is None else settings.cache_mib * 2**20
        folders = settings.models or (ModelFolder(settings.model_name, settings.model),)
        admission = Admission(settings.max_queue_seconds, settings.max_key_queue_seconds or math.inf)
        self.models = [
            ServedModel(
                folder,
                name or folder_name(folder, ""),
                () if place else settings.model_aliases,
                settings.default_tier,
                admission.beside() if place else admission,
                name,
                alone=len(folders) == 1,
            )
            for place, (name, folder) in enumerate(folders)
        ]
        self._loras = LoraFolder(settings.loras, settings.loras_mib * 2**20, alone=len(folders) == 1)
        self._residence = Residence(self.models, memory_for_models(settings), self._load, self._unload)
        self.follow = self._residence.follow

    async def open(
        self,
        served: ServedModel,
        model: Model,
        waits: Callable[[str], None],
        start: Start | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        """All that serves a model's requests, of its folder and its entries in the registry.

        With `start`, of the default model, which was loaded in `load_seconds`, its engine as well. Raises whatever makes this
        impossible.
        """
        settings = self.settings
        passed = start.passed if start else lambda _: None
        others, chunks = other_sizes(settings, model), prompt_chunks(settings, model)
        names = ModelNames(model, self.open_once, (settings.state, settings.registry), self._trusted)
        if start and settings.compiled:
            waits("the model is compiled, which takes minutes unless FLEXI_COMPILE_CACHE holds it")
            await asyncio.to_thread(compile_model, settings, model, others, chunks)
            passed("compile")
        while (name := served.given_name or await look(names.find)) is None:
            waits(names.fault or "the registry is read")
            await asyncio.sleep(settings.watch_seconds)
        if taken := next((other for other in self.models if other is not served and other.model and other.name == name), None):
            message = (
                f"{served.folder} and {taken.folder} are both called {name}: give one of them another name, as name=folder"
            )
            raise InvalidInput(message, param="models")
        model = replace(model, ref=model.ref.model_copy(update={"name": name}))
        served.model = model
        served_as(served.counted_as)
        metrics.begin()
        loras = served.loras = await asyncio.to_thread(self._loras.offered, served.folder, model)
        sets = served.adapter_sets = AdapterSets(served.adapted, served.admission, settings.loras_mib * 2**20)
        registry = ModelRegistry(settings, name, self.open_once, self._trusted)
        steps = teacher_steps(settings, model)
        schedules = await asyncio.to_thread(ActiveSchedules, lambda: registry.catalog, model, steps, others)
        observer = RegistryEvents(name, settings.registry, self.announcer.tell) if self.announcer else RegistryObserver()
        last_good, default = registry.last_good, settings.default_tier
        watch = Watch(schedules, lambda: registry.catalog, last_good, default, names.elsewhere, observer)

        def has_tiers() -> bool:
            """Without an answer of the registry, or a kept one, a server is of no use to anybody."""
            return (watch.refresh() or watch.restore()) and bool(schedules.served() or not settings.require_tiers)

        while not await look(has_tiers):
            unserved = in_one_line(tier_warnings(schedules, settings.default_tier))
            waits(watch.fault or f"FLEXI_REQUIRE_TIERS wants a tier of the registry: {unserved}")
            await asyncio.sleep(settings.watch_seconds)
        passed("registry")
        rows = FULL_WAVES * settings.max_wave_rows
        served.bytes = model.weight_bytes + await asyncio.to_thread(bytes_within, model, rows, self._cache, others, chunks)
        schedules.prepare = served.prepare
        if start:
            waits("the model is warming up")
            begin = time.monotonic()
            await asyncio.to_thread(self._start_engine, served, model, schedules)
            served.loaded(load_seconds + time.monotonic() - begin)
            passed("warm_up")
        features = await asyncio.to_thread(lambda: self._features)
        syntax = settings.prompt_syntax if model.prompts.takes_chunks else PLAIN
        prompts = await asyncio.to_thread(PromptReader, model.prompts, chunks, syntax)
        # Whatever may fail is above: a model that is opened again must leave no threads that record for nobody.
        learns = learning(settings, registry, schedules, model, served, sets, features, observer)
        resident = Resident(self._residence, served) if len(self.models) > 1 else None
        forecast = resident.forecast if resident else served.forecast
        choice = LoraChoice(loras, settings.loras_on_schedules, sets.seconds)
        planner = Planner(schedules, learns.experiments.active, model, forecast, settings, others, prompts, choice)
        if overruled := planner.default_guidance.overruled():
            log.warning("%s", overruled)
        residencies: list[Residency] = [*([resident] if resident else []), sets]
        generation = Generation(planner, served, self._quotas, learns.observers, self._files, residencies, self.repeats)
        followers = (watch, learns.experiments, learns.candidates)
        following = [asyncio.create_task(follower.follow(settings.watch_seconds)) for follower in followers]
        served.parts = ModelParts(registry, schedules, generation, learns, following)

    async def open_beside(self, served: ServedModel) -> None:
        """Open a model that is not loaded before a request needs it; again after a while where that fails."""
        served_as(served.counted_as)
        while True:
            try:
                model = await asyncio.to_thread(self._described, served)
                await self.open(served, model, lambda what: setattr(served, "fault", what))
            except Exception as error:
                log.error("the model in %s cannot be opened: %s", served.folder, reason := _fault(error))
                served.failed(reason)
                await asyncio.sleep(RETRY)
            else:
                served.state, served.fault = "unloaded", ""
                log.info(
                    "opened",
                    extra={"fields": {"bytes": served.bytes, "sizes": list(map(str, served.generation.planner.sizes))}},
                )
                return

    def _described(self, served: ServedModel) -> Model:
        return read(self.settings, served.folder, served.given_name, weights=False)

    async def _load(self, served: ServedModel) -> None:
        """Into memory, warm. Raises `NotReady`, and what says that there is no memory."""
        with serving(served.counted_as):
            await asyncio.to_thread(self._load_and_start, served)

    def _load_and_start(self, served: ServedModel) -> None:
        settings, known = self.settings, served.model
        assert known, "a model is opened before it is loaded"
        try:
            with exclusive():  # the engine's thread captures no graph meanwhile
                model = read(settings, served.folder, known.ref.name, compiled=settings.compiled)
            if model.ref != known.ref:
                message = f"{served.folder} has other weights than when the server started: start it anew"
                raise InvalidInput(message, param="models")
            if settings.compiled:
                compiling.allow()
                try:
                    compile_model(settings, model, other_sizes(settings, model), prompt_chunks(settings, model))
                finally:
                    compiling.forbid()
            self._start_engine(served, model, served.schedules)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise NotReady(_fault(error)) from error

    async def _unload(self, served: ServedModel) -> None:
        """Out of memory: all that comes of it is stopped, and its weights are dropped."""
        engine, served.engine = served.engine, None
        if served.parts:
            served.parts.learning.idle.close()
        if served.adapter_sets:
            with serving(served.counted_as):
                served.adapter_sets.forget()
        if engine:
            await asyncio.to_thread(engine.leave)
        del engine
        if served.model:
            await asyncio.to_thread(free_memory, served.model.device)

    @cached_property
    def _features(self) -> Extractor | None:
        """Where they are wanted: one extractor for all models."""
        if not self.settings.features:
            return None
        with exclusive():
            return extractor(self.settings.features, self.settings.device).images

    def _start_engine(self, served: ServedModel, model: Model, schedules: ActiveSchedules) -> None:
        """And wait until it is warm."""
        settings, others = self.settings, other_sizes(self.settings, model)
        graphs = graphs_for(model.device) if settings.cuda_graphs else None
        engine = ModelEngine(
            model,
            served.admission,
            settings.max_wave_rows,
            self._cache,
            graphs,
            others,
            prompt_chunks(settings, model),
            self.device_thread,
            served.curve,
            no_loras if served.adapter_sets is None else served.adapter_sets.model,
        )
        compared = served.parts.learning.schedules() if served.parts else []
        engine.start([*(entry.schedule for entry in schedules.tiers()), *compared])
        served.engine, served.curve = engine, engine.curve
        served.bytes = model.weight_bytes + engine.slot_bytes


def _fault(error: Exception) -> str:
    """As clients read it, who did not set FLEXI_MODEL."""
    return why(error).removeprefix("FLEXI_MODEL: ")
