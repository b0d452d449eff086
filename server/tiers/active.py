"""The schedules in force: what each tier means now, verified and compiled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cachetools import LRUCache
from prometheus_client import Gauge

from engine.image_size import ImageSize, measured_sizes
from engine.model import Model
from engine.program import Program
from registry.catalog import Catalog
from registry.errors import InvalidInput, NotFound, StoreUnavailable, Untrusted
from registry.schedule import Schedule
from registry.signing import Signature
from registry.tiers import REFERENCE
from server.telemetry import metrics

EXPLICIT_KEPT = 64  # compiled schedules that requests named by digest or version
LOOKUPS = 2  # at work in the registry at once; nobody waits for them but other lookups
WAITING = 16  # lookups that wait for those; the next one is refused


Begun = Callable[[Program], Program]


@dataclass(frozen=True)
class ActiveSchedule:
    """A schedule ready to run. `tier` is None when a request named the schedule itself.

    `relative_cost` is its MACs over those of the teacher that is in force as `reference`; of an entry that is kept while the
    teacher changes, as an experiment's arms are, only `ActiveSchedules.relative_cost` says it. `signature` is the one that let
    it pass where there are trusted keys.
    """

    tier: str | None
    version: int | None
    digest: str
    program: Program
    relative_cost: float = 1.0
    signature: Signature | None = None

    @property
    def label(self) -> str:
        """The tier under which its work is counted."""
        return self.tier or metrics.CUSTOM

    @property
    def schedule(self) -> Schedule:
        """The document that the program was compiled from."""
        return self.program.schedule


class ActiveSchedules:
    """Tiers and explicit schedules of one model.

    `tier`, `tiers` and `at_hand` only look at what is here; `load` and `explicit` may read the registry, and block. `put`
    replaces the whole set in one assignment, so a reader in another thread sees the old set or the new one, and a request runs
    to its end with the entry it began with.

    `refused` are the registry's tiers that are not in force, and why; `elsewhere`, where none is, the names of other models
    of the registry that are these weights.
    """

    refused: Mapping[str, str]
    elsewhere: Sequence[str]

    def __init__(
        self, open_catalog: Callable[[], Catalog], model: Model, teacher_steps: int, others: Collection[ImageSize] = ()
    ) -> None:
        """`open_catalog` gives the same catalog each time, or raises while the store is away.

        `others`: sizes that are served beside the model's own.
        """
        self._sizes = (model.image_size, *others)
        self.prepare: Callable[[Schedule], None] = lambda schedule: None  # the engine, for what comes into force; may block
        self._open_catalog = open_catalog
        self._model = model
        self._teacher = self.compiled(model.teacher(teacher_steps))
        self._tiers: dict[str, ActiveSchedule] = {}
        self.put({})
        self._explicit = LRUCache[str, ActiveSchedule](EXPLICIT_KEPT)  # by reference
        self._lock = threading.Lock()  # of `_explicit`
        self._threads = ThreadPoolExecutor(LOOKUPS, "registry")
        self._free = asyncio.Semaphore(LOOKUPS)  # threads
        self._waiting = 0

    def tiers(self) -> list[ActiveSchedule]:
        """Everything in force, cheapest first."""
        return sorted(self._tiers.values(), key=lambda entry: entry.relative_cost)

    def names(self) -> list[str]:
        """Of the tiers in force, `reference` included."""
        return list(self._tiers)

    def served(self) -> list[str]:
        """The tiers in force that come from the registry, `reference` excepted: it is the teacher, whoever made it."""
        return [name for name, entry in self._tiers.items() if entry.version and name != REFERENCE]

    @property
    def model_name(self) -> str:
        """Of the model that all of this is for."""
        return self._model.ref.name

    def tier(self, name: str) -> ActiveSchedule:
        """What a tier means now. Raises `NotFound` naming the tiers there are."""
        tiers = self._tiers
        try:
            return tiers[name]
        except KeyError:
            raise NotFound(f"there is no {name!r}; there are {sorted(tiers)}", param="tier") from None

    def default(self, wanted: str) -> str:
        """The tier of requests that name none: `wanted`, or the teacher while the registry has no such tier."""
        return wanted if wanted in self._tiers else REFERENCE

    def put(
        self, tiers: Mapping[str, ActiveSchedule], refused: Mapping[str, str] | None = None, elsewhere: Sequence[str] = ()
    ) -> None:
        """Put a set in force, the own teacher added where it lacks `reference`. What leaves becomes 0 in the metrics."""
        tiers = {REFERENCE: replace(self._teacher, tier=REFERENCE)} | dict(tiers)
        tiers = {name: self._rated(entry, tiers[REFERENCE]) for name, entry in tiers.items()}
        for entry in self._tiers.values():
            if entry not in tiers.values():
                _info(entry).set(0)
        for name, entry in tiers.items():
            _info(entry).set(1)
            metrics.relative_cost.labels(name).set(entry.relative_cost)
        self._tiers, self.refused, self.elsewhere = tiers, dict(refused or {}), tuple(elsewhere)
        metrics.tiers_served.set(len(self.served()))
        metrics.tiers_unserved.set(len(self.refused))

    def known(self, digest: str) -> ActiveSchedule | None:
        """A schedule that is in force already, or the own teacher: it needs no registry, and no signature."""
        entries = (self._teacher, *self._tiers.values())
        return next((replace(entry, tier=None) for entry in entries if entry.digest == digest), None)

    def load(self, digest: str) -> ActiveSchedule:
        """A schedule by its whole digest, compiled, and the engine prepared for it. Raises whatever is wrong with it."""
        entry = self.known(digest) or self.compiled(*self._open_catalog().schedule_and_signature(digest))
        self.prepare(entry.schedule)
        return entry

    def compiled(self, schedule: Schedule, signature: Signature | None = None) -> ActiveSchedule:
        """Raises `InvalidInput` naming what does not fit this model: weights, family, sizes, or what its program needs."""
        measured = measured_sizes(schedule, self._model.image_size)
        if not {*measured} & {*self._sizes}:
            shown, served = ", ".join(map(str, measured)), ", ".join(map(str, self._sizes))
            message = f"the schedule was measured at {shown}, this server makes {served}"
            raise InvalidInput(message, param="validated.sizes")
        return ActiveSchedule(None, None, schedule.digest, self._model.compile(schedule), signature=signature)

    def explicit(self, ref: str) -> ActiveSchedule:
        """A schedule by version number, digest or its beginning. Raises `NotFound`, `InvalidInput` and `Untrusted`."""
        if here := self.at_hand(ref):
            return here
        try:
            entry = self._resolve(ref)
        except (NotFound, InvalidInput, Untrusted) as error:
            raise type(error)(error.text, param="schedule") from error
        with self._lock:
            self._explicit[ref] = entry
        return self._rated(entry, self._tiers[REFERENCE])

    def at_hand(self, ref: str) -> ActiveSchedule | None:
        """`explicit`, where it needs no registry: what is in force, or was asked for lately."""
        entry = self.known(ref)
        if entry is None:
            with self._lock:
                entry = self._explicit.get(ref)
        return entry and self._rated(entry, self._tiers[REFERENCE])

    async def find(self, ref: str) -> ActiveSchedule:
        """`explicit`, in threads of its own: a store that hangs keeps only other lookups waiting, and few of them.

        Who does not want to wait any longer cancels it. Raises `StoreUnavailable` when too many wait. One event loop's own.
        """
        if here := self.at_hand(ref):
            return here
        if self._waiting >= WAITING:
            message = f"{WAITING} requests wait for the registry already: try again later, or name a tier"
            raise StoreUnavailable(message, param="schedule")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, self.explicit, ref)
        lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(lookup)  # its thread goes on anyway, and is not free before

    def _looked_up(self, lookup: asyncio.Future[ActiveSchedule]) -> None:
        self._free.release()
        if not lookup.cancelled():
            lookup.exception()  # seen: else asyncio logs it, if nobody waits any more

    def _resolve(self, ref: str) -> ActiveSchedule:
        schedule, version, _ = self._open_catalog().resolve(ref)
        return replace(self.compiled(schedule), version=version)

    def relative_cost(
        self, entry: ActiveSchedule, size: ImageSize | None, chunks: int = 1, begun: Begun | None = None
    ) -> float:
        """Its MACs over those of the teacher in force, both at this size and with so many chunks of context.

        It differs a little, as attention's share does. begun: what both run of their programs, at this size and from an image,
        if they start from one.
        """
        ours, teachers = entry.program, self._tiers[REFERENCE].program
        if begun is not None:
            ours, teachers = begun(ours), begun(teachers)
        return self._model.macs_at(size, chunks).relative(ours, teachers)

    def _rated(self, entry: ActiveSchedule, teacher: ActiveSchedule) -> ActiveSchedule:
        return replace(entry, relative_cost=self._model.macs.relative(entry.program, teacher.program))


def _info(entry: ActiveSchedule) -> Gauge:
    return metrics.schedule_info.labels(entry.tier, metrics.NO_ARM, entry.digest, entry.version or "")
