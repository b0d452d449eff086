"""A server that is open for requests: its models, and what they share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from engine.model import Model
from registry.errors import FlexiError, NotFound
from server import supervision
from server.api import GenerateRequest, GenerateResponse, RequestWarning
from server.config import Settings
from server.experiments.runtime import ExperimentRuntime
from server.jobs import job_store
from server.jobs.job_run import JobRun
from server.jobs.job_store import JobStore
from server.jobs.jobs import JobLimits, Jobs
from server.jobs.leftovers import Leftovers
from server.jobs.runner import JobRunner
from server.jobs.webhooks import WebhookSender
from server.models.loading import load_first
from server.models.opener import ModelOpener
from server.models.served_model import ServedModel
from server.operator.operator import Operator
from server.operator_events import announcer
from server.requests.context import RequestContext
from server.requests.generation import Generation
from server.requests.other_workers import OtherWorkers
from server.storage import kept_files
from server.storage.async_store import AsyncStore
from server.storage.kept_files import KeptFiles
from server.storage.sweeper import Sweeper
from server.telemetry.served import begin as serve_as
from server.telemetry.start import Start
from server.tiers.active import ActiveSchedules
from server.webhooks.delivery import Delivery
from server.webhooks.signature import webhook_secret


class App:
    """A server that is open for requests. What is said of a model without naming one is of the default, the first."""

    def __init__(self, opener: ModelOpener, settings: Settings) -> None:
        self.models, self.device_thread, self.settings = opener.models, opener.device_thread, settings
        self.storage = AsyncStore(opener.open_once)
        self._public = AsyncStore(opener.open_once)  # whoever reads files holds up no jobs
        self.files = KeptFiles(self.storage, public=self._public)
        self.jobs = self._jobs()
        self.operator = Operator(self.models, settings)
        self.following: list[asyncio.Task[None]] = []
        self._announcer = opener.announcer
        self.opened = int(time.time())  # Unix time
        self.other_workers = OtherWorkers(supervision.shared_folder() if settings.workers > 1 else None, self._cancel_here)

    async def answer(
        self, request: GenerateRequest, context: RequestContext, gone: Coroutine[Any, Any, None]
    ) -> GenerateResponse:
        """The images of a request, by the model that it names: see `Generation.answer`. Raises `NotFound` for another name."""
        try:
            served = self.served(request.model)
            generation = served.generation
        except FlexiError:
            gone.close()
            raise
        serve_as(served.counted_as)
        return await generation.answer(request, context, gone)

    def follow(self, opener: ModelOpener) -> None:
        """Begin what goes on beside requests, until `close`."""
        folders = [kept_files.FOLDER, job_store.OPEN, job_store.ENDED, announcer.FOLDER]
        sweeper = Sweeper(self.storage, folders, [Leftovers(self.storage).sweep])
        works = [sweeper.follow()]
        if self._announcer:
            works.append(self._announcer.follow())
        if self.settings.max_jobs:
            works.append(self.jobs.runner.follow(self.settings.watch_seconds))
        if opener.repeats:
            works.append(opener.repeats.follow())
        if others := opener.models[1:]:
            works += [opener.follow(), *map(opener.open_beside, others)]
        self.following += map(asyncio.create_task, works)

    async def cancel(self, key: str, request_id: str) -> int:
        """Stop this key's requests of this id in all workers; how many there were. Raises `NotReady`: see `OtherWorkers`."""
        return self._cancel_here(key, request_id) + await self.other_workers.cancel(key, request_id)

    @property
    def default(self) -> ServedModel:
        """What serves requests that name no model."""
        return self.models[0]

    def served(self, name: str | None) -> ServedModel:
        """A model by one of its names. Raises `NotFound` naming those that there are."""
        if name is None:
            return self.default
        for model in self.models:
            if name in model.names:
                return model
        there = ", ".join(known for model in self.models for known in model.names)
        message = f"this server has {there}; its operator can allow other names by FLEXI_MODEL_ALIASES"
        raise NotFound(message, param="model")

    @property
    def open_models(self) -> list[ServedModel]:
        """Those whose folders and registry entries were read."""
        return [model for model in self.models if model.parts]

    @property
    def model(self) -> Model:
        """The default one."""
        assert self.default.model, "a server that is open has its default model"
        return self.default.model

    @property
    def model_names(self) -> list[str]:
        """What clients may call the default model: its own name first."""
        return self.default.names

    @property
    def schedules(self) -> ActiveSchedules:
        """Of the default model."""
        return self.default.schedules

    @property
    def generation(self) -> Generation:
        """Of the default model."""
        return self.default.generation

    @property
    def experiments(self) -> ExperimentRuntime:
        """Of the default model."""
        return self.default.experiments

    @property
    def queue_seconds(self) -> str:
        """Predicted seconds of all the work in the engine, as a header says them."""
        admission = self.default.admission  # which counts all models'
        return f"{admission.seconds + admission.background_seconds:.3f}"

    @property
    def default_tier(self) -> str:
        """What a request gets that names neither model nor tier."""
        return self.default.default_tier

    @property
    def warnings(self) -> list[RequestWarning]:
        """Of the default model."""
        return self.default.warnings

    async def close(self) -> None:
        """Stop watching and working; requests still waiting fail with `NotReady`."""
        for task in self.following:
            task.cancel()
        await self.other_workers.close()
        await self.jobs.runner.close()
        for model in self.models:
            if model.parts:
                model.parts.learning.idle.close()
        await asyncio.to_thread(self.device_thread.close)
        for model in self.models:
            await model.close()
        self.storage.close()
        self._public.close()
        self.operator.close()
        if self._announcer:
            self._announcer.close()

    def _serves(self, name: str | None) -> bool:
        """Whether a model is one of those here, and its folder understood: others' jobs are for other servers."""
        return name is None or any(name in served.names and served.parts for served in self.models)

    def _cancel_here(self, key: str, request_id: str) -> int:
        return sum(served.generation.running.cancel(key, request_id) for served in self.open_models)

    def _jobs(self) -> Jobs:
        """As many run at once as fill two waves without guidance: one is at work while the next is encoded."""
        settings, secret, private = self.settings, self.settings.webhook_secret, self.settings.webhook_private
        webhooks = WebhookSender(Delivery(webhook_secret(secret.get_secret_value()), private)) if secret else None
        store, run = JobStore(self.storage), JobRun(self.answer, self.files)
        lease = settings.job_lease_seconds
        runner = JobRunner(store, run, webhooks, settings.max_wave_rows, lease, serves=self._serves)
        limits = JobLimits(settings.max_jobs, settings.job_seconds, settings.job_keep_seconds)
        return Jobs(store, runner, run, limits, webhooks is not None, private)


async def open_app(settings: Settings, waits: Callable[[str], None], start: Start) -> App:
    """Load and warm the default model, read the registry, start the engine's thread. The event loop stays free meanwhile.

    Other models open beside it, and are loaded when a request needs them. `waits` is told what is waited for, as a clause,
    `start` what is done. Raises whatever makes this impossible: see `why`.
    """
    waits("the model is loading")
    begin = time.monotonic()
    model = await asyncio.to_thread(load_first, settings)
    load_seconds = time.monotonic() - begin
    start.passed("load")
    opener = ModelOpener(settings)  # which asks the device for its memory, now that there is one
    await opener.open(opener.models[0], model, waits, start, load_seconds)
    app = App(opener, settings)
    await app.other_workers.listen()
    app.follow(opener)
    return app
