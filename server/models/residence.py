"""Which models are in memory: loaded when a request needs one, unloaded by least recent use when another one needs the room."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

import torch
from typing_extensions import override

from engine.image_size import ImageSize
from engine.program import Program
from registry.errors import FlexiError
from server.errors import NotReady
from server.models.served_model import ServedModel
from server.requests.generation import Residency
from server.requests.plan import Plan

log = logging.getLogger(__name__)

STAY = 4.0  # times what loading it took: how long a model that is in demand stays, so that swapping is no fifth of the work
RETRY = 30.0  # seconds until a model that failed is tried again: somebody may have mended it


class Residence:
    """Loads one model after the other, in the order in which they were asked for, in a task of its own (`follow`).

    A model with a request under way is never unloaded. If all that are in memory have some, the one that was used least
    recently, and has been there long enough, lets no more begin, and goes when those are done. For one event loop.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        memory: int,
        load: Callable[[ServedModel], Awaitable[None]],
        unload: Callable[[ServedModel], Awaitable[None]],
    ) -> None:
        """memory: bytes for the weights and the slots of all. `load` raises what `why` says; `unload` gives all bytes back."""
        self._models, self._memory = models, memory
        self._load, self._unload = load, unload
        self._wanted = dict[ServedModel, None]()  # in the order in which they were
        self._leaving: ServedModel | None = None  # lets no more requests begin
        self._began = 0.0  # the load at work
        self._waiting = Counter[ServedModel]()  # requests
        self._clients = {model: set[int]() for model in models}  # plans that are no background work, waiting or under way
        self._patient = 0  # background requests that wait until no client needs another model
        self._failed_at = dict[ServedModel, float]()
        self._changed = asyncio.Condition()

    def seconds(self, model: ServedModel) -> float:
        """What it should take until this model is in memory: 0 where it is, else by what loads took."""
        if model.state == "loaded":
            return 0.0
        order = list(dict.fromkeys((*self._wanted, model)))
        seconds = [self._load_seconds(other) for other in order[: order.index(model) + 1]]
        if order[0].state == "loading":
            seconds[0] = max(seconds[0] - (monotonic() - self._began), 0.0)
        return sum(seconds)

    async def enter(self, model: ServedModel, plan: Plan) -> None:
        """Wait until the model is in memory; it stays until `leave`. Raises `Overloaded`, and `NotReady` where it cannot be."""
        if not plan.in_background:
            self._clients[model].add(id(plan))  # until `leave`, which follows whatever happens
        if not self._may_begin(model):
            name, seconds, background = plan.key.name, plan.specs[0].key_seconds, plan.in_background
            # A load that would begin for this request does not count: one that takes longer than the bound never would.
            before = self.seconds(model) if self._wanted else 0.0
            model.admission.enter(name, plan.macs, seconds, before=before, background=background)
            self._waiting[model] += 1
            try:
                if background:
                    await self._until_quiet(model)
                await self._arrive(model)
            finally:
                self._waiting[model] -= 1
                model.admission.done(name, plan.macs, background=background)
                self._tell_soon()
        model.holders.add(id(plan))
        model.used = monotonic()

    def leave(self, model: ServedModel, plan: Plan) -> None:
        """This request needs it no longer."""
        model.holders.discard(id(plan))
        self._clients[model].discard(id(plan))
        if not model.holders or self._patient:
            self._tell_soon()

    async def follow(self) -> None:
        """Load what is wanted, for ever."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._wanted)
            model = next(iter(self._wanted))
            try:
                await self._bring(model)
            finally:
                self._wanted.pop(model, None)
                self._leaving = None
                await self._tell()

    async def _arrive(self, model: ServedModel) -> None:
        if model.state == "failed" and monotonic() - self._failed_at.get(model, -RETRY) < RETRY:
            raise model.refusal()
        self._wanted.setdefault(model)
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: self._may_begin(model) or (model.state == "failed" and model not in self._wanted)
            )
        if model.state == "failed":
            raise model.refusal()

    async def _until_quiet(self, model: ServedModel) -> None:
        """Background work would not run beside clients of other models, so it has none of these unloaded."""
        self._patient += 1
        try:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: (
                        self._may_begin(model) or not any(plans for other, plans in self._clients.items() if other is not model)
                    )
                )
        finally:
            self._patient -= 1

    def _may_begin(self, model: ServedModel) -> bool:
        return model.state == "loaded" and model is not self._leaving

    async def _bring(self, model: ServedModel) -> None:
        """Load a model, and make room before."""
        if model.state == "loaded":  # it was to leave, and another one left
            return
        try:
            await self._make_room(model)
            model.state, self._began = "loading", monotonic()
            log.info("loading", extra={"fields": {"model": model.name, "bytes": model.bytes}})
            await self._load_or_make_room(model)
        except Exception as error:  # whatever it is, other models are loaded
            unforeseen = None if isinstance(error, FlexiError) else error
            reason = f"{type(error).__name__}: {error}" if unforeseen else str(error)
            log.error("the model %s could not be loaded: %s", model.name, reason, exc_info=unforeseen)
            model.failed(reason)
            self._failed_at[model] = monotonic()
            model.count()
            return
        model.loaded(monotonic() - self._began)

    async def _load_or_make_room(self, model: ServedModel) -> None:
        """Where memory is short all the same, others go first."""
        while True:
            try:
                await self._load(model)
                return
            except (torch.OutOfMemoryError, MemoryError) as error:
                if not self._others(model):
                    raise NotReady(f"it needs more memory than there is: {error}") from error
            await self._unload_one(model)

    async def _make_room(self, model: ServedModel) -> None:
        if model.bytes > self._memory:
            message = f"it takes {model.bytes >> 20} MiB, and FLEXI_MODELS_MIB allows {self._memory >> 20}"
            raise NotReady(message)
        while sum(other.bytes for other in self._others(model)) + model.bytes > self._memory:
            await self._unload_one(model)

    async def _unload_one(self, model: ServedModel) -> None:
        """The one used least recently that nobody needs. Where all are needed, the first that is free, or has had its time."""
        async with self._changed:
            if not self._free(model):
                # one that background work alone holds is free only when the clients of all others are gone
                oldest = min(self._others(model), key=lambda one: (not self._clients[one], self._stays_until(one)))
                with suppress(TimeoutError):
                    seconds = max(self._stays_until(oldest) - monotonic(), 0.0)
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._free(model)), seconds)
            if not self._free(model):
                await self._changed.wait_for(lambda: self._free(model) or not self._waiting[oldest])
                self._leaving = oldest
                await self._changed.wait_for(lambda: self._free(model))
            victim = self._free(model)[0]
            victim.state, self._leaving = "unloaded", None
        try:
            await self._unload(victim)
        finally:
            victim.count()
        log.info("unloaded", extra={"fields": {"model": victim.name, "bytes": victim.bytes, "for": model.name}})

    def _free(self, model: ServedModel) -> list[ServedModel]:
        """The others that no request needs, the one used least recently first."""
        others = sorted(self._others(model), key=lambda other: other.used)
        return [one for one in others if not one.holders and (one is self._leaving or not self._waiting[one])]

    def _stays_until(self, model: ServedModel) -> float:
        return model.loaded_at + STAY * (model.load_seconds or 0.0)

    def _others(self, model: ServedModel) -> list[ServedModel]:
        return [other for other in self._models if other is not model and other.state == "loaded"]

    def _load_seconds(self, model: ServedModel) -> float:
        """By its last load, else by those of others and its bytes."""
        if model.load_seconds is not None:
            return model.load_seconds
        known = [other for other in self._models if other.load_seconds and other.bytes]
        pace = sum(other.load_seconds or 0.0 for other in known) / max(sum(other.bytes for other in known), 1)
        return model.bytes * pace

    def _tell_soon(self) -> None:
        if self._wanted or self._patient:
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Resident(Residency):
    """A model's place in memory, as its requests see it."""

    def __init__(self, residence: Residence, model: ServedModel) -> None:
        self._residence, self._model = residence, model

    def forecast(
        self, program: Program, unet_rows: int, images: int, tier: str, size: ImageSize | None = None, chunks: int = 1
    ) -> float:
        """Seconds until so many images would be done if they came now, those of loading the model among them."""
        return self._residence.seconds(self._model) + self._model.forecast(program, unet_rows, images, tier, size, chunks)

    @override
    async def enter(self, plan: Plan) -> None:
        await self._residence.enter(self._model, plan)

    @override
    def leave(self, plan: Plan) -> None:
        self._residence.leave(self._model, plan)


def free_memory(device: torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
