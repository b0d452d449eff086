"""Which sets of LoRAs a model has in memory: made beside the waves when a request needs one, dropped by least recent use."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from time import monotonic
from weakref import WeakSet

from typing_extensions import override

from engine.config import reason
from engine.model import Model
from registry.errors import FlexiError
from server.batching.admission import Admission
from server.batching.moving_average import MovingAverage
from server.errors import GenerationFailed, NotReady
from server.loras.adapter_set import AdapterSet
from server.requests.generation import Residency
from server.requests.plan import Plan
from server.telemetry import metrics, tracing

log = logging.getLogger(__name__)


class AdapterSets(Residency):
    """One model's; what is kept are its networks with other weights in some layers. For one event loop.

    A set stays as long as a request needs it. One after the other is made, in the order in which they were asked for; where
    there is no room, the set that was used least recently and that nobody needs goes, and if all are needed, who comes waits:
    a client until background work has given its set up, background work until one is free.
    """

    def __init__(self, make: Callable[[AdapterSet], Model], admission: Admission, most: int) -> None:
        """make: in a thread beside the waves; raises what is wrong with a set. most: bytes of all sets together."""
        self._make, self._admission, self._most = make, admission, most
        self._kept = OrderedDict[AdapterSet, Model]()  # the one used least recently first
        self._needed = defaultdict[AdapterSet, set[int]](set)  # by plans, from `enter` to `leave`
        self._gives_way = dict[int, asyncio.Event]()  # background plans: set when its set has to go
        self._borrowed = defaultdict[AdapterSet, WeakSet["asyncio.Task[None]"]](WeakSet)
        self._making = dict[AdapterSet, "asyncio.Task[None]"]()
        self._unloads = 0
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()
        self._pace = MovingAverage()  # seconds per byte

    def model(self, adapters: AdapterSet) -> Model:
        """The model with these LoRAs. Any thread may ask. Raises `NotReady` where it is not in memory."""
        model = self._kept.get(adapters)
        if model is None:
            raise NotReady(f"{adapters} is not in memory", param="loras")
        return model

    def seconds(self, adapters: AdapterSet) -> float:
        """What it should take until these LoRAs are added; 0 before any were."""
        return 0.0 if not adapters or adapters in self._kept else self._pace.value * adapters.bytes

    @override
    async def enter(self, plan: Plan) -> None:
        adapters, key = plan.adapters, plan.key.name
        if not adapters:
            return
        self._needed[adapters].add(id(plan))  # until `leave`, which follows whatever happens
        if plan.in_background:
            self._gives_way[id(plan)] = asyncio.Event()
        if adapters in self._kept:
            self._kept.move_to_end(adapters)
            metrics.adapter_sets_total.labels("kept").inc()
            return
        self._admission.enter(key, plan.macs, plan.specs[0].key_seconds, background=plan.in_background)
        try:
            self._changed.set()  # background work may have waited for it outside of its turn
            with tracing.span("adapt"):
                while adapters not in self._kept:
                    await asyncio.shield(self._made(adapters))
        finally:
            self._admission.done(key, plan.macs, background=plan.in_background)

    @override
    async def gives_way(self, plan: Plan) -> None:
        await self._gives_way.get(id(plan), asyncio.Event()).wait()

    @override
    def leave(self, plan: Plan) -> None:
        self._gives_way.pop(id(plan), None)
        if needed := self._needed.get(plan.adapters):
            needed.discard(id(plan))
            if not needed:
                del self._needed[plan.adapters]
            self._changed.set()

    def borrow(self, adapters: AdapterSet, task: asyncio.Task[None]) -> None:
        """A task that works with a set, as long as nobody needs the room: then it is cancelled."""
        if adapters:
            self._borrowed[adapters].add(task)

    def forget(self) -> None:
        """Drop all, and what is being made, for the model leaves."""
        self._unloads += 1
        for adapters in list(self._kept):
            self._drop(adapters)

    def _made(self, adapters: AdapterSet) -> asyncio.Task[None]:
        """The task that makes it, one for all who wait: whoever waits no longer ends nothing."""
        if adapters not in self._making:
            task = self._making[adapters] = asyncio.create_task(self._bring(adapters))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits has it
        return self._making[adapters]

    async def _bring(self, adapters: AdapterSet) -> None:
        try:
            while adapters in self._needed and adapters not in self._kept:
                async with self._turn:
                    if await self._has_room(adapters):
                        begin, unloads = monotonic(), self._unloads
                        made = await asyncio.to_thread(self._try, adapters)
                        if unloads != self._unloads:  # it would keep the weights that were to go
                            raise NotReady("the model was unloaded while they were added", param="loras")
                        self._kept[adapters] = made
                        self._report(adapters, monotonic() - begin)
                        return
                if adapters in self._needed:
                    await self._change()
        except FlexiError:
            metrics.adapter_sets_total.labels("failed").inc()
            raise
        finally:
            del self._making[adapters]

    def _try(self, adapters: AdapterSet) -> Model:
        try:
            return self._make(adapters)
        except FlexiError as error:
            log.error("%s cannot be added to the model: %s", adapters, error)
            raise
        except Exception as error:  # no memory, and whatever nobody expected
            log.exception("%s cannot be added to the model", adapters)
            raise GenerationFailed(f"adding {adapters} failed: {reason(error)}", param="loras") from error

    async def _has_room(self, adapters: AdapterSet) -> bool:
        """Make room. A client's set waits for it, and has background work give one up.

        False where nobody needs the set any more, or only background work does, which must wait without keeping others.
        """
        while adapters in self._needed:
            if self._bytes + adapters.bytes <= self._most:
                return True
            if victim := next((kept for kept in self._kept if kept not in self._needed), None):
                self._drop(victim)
                continue
            if self._in_background(adapters):
                return False
            if yielding := next(filter(self._in_background, self._kept), None):
                for plan in self._needed[yielding]:
                    self._gives_way[plan].set()
            await self._change()
        return False

    def _in_background(self, adapters: AdapterSet) -> bool:
        """Whether no client needs the set."""
        return self._needed.get(adapters, set()) <= self._gives_way.keys()

    async def _change(self) -> None:
        """Wait until somebody needs a set no more, or one more does."""
        self._changed.clear()
        await self._changed.wait()

    @property
    def _bytes(self) -> int:
        return sum(adapters.bytes for adapters in self._kept)

    def _report(self, adapters: AdapterSet, seconds: float) -> None:
        self._pace.add(seconds / max(adapters.bytes, 1))
        metrics.adapter_sets_total.labels("made").inc()
        metrics.stage_seconds.labels("adapt").observe(seconds)
        self._export()
        fields = {"loras": str(adapters), "bytes": adapters.bytes, "seconds": round(seconds, 3)}
        log.info("LoRAs are added", extra={"fields": fields})

    def _drop(self, adapters: AdapterSet) -> None:
        del self._kept[adapters]
        for task in self._borrowed.pop(adapters, ()):
            task.cancel()
        self._export()

    def _export(self) -> None:
        metrics.adapter_set_bytes.set(self._bytes)
