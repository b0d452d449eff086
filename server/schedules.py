"""The schedules in force: what each tier means now, compiled. Watches the registry and keeps the last good set."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from prometheus_client import Gauge

from engine.models import Model
from engine.program import Program
from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput, NotFound, StoreUnavailable, Unsupported
from registry.schedule import Schedule, teacher
from server import metrics

log = logging.getLogger(__name__)

REFERENCE = "reference"
EXPLICIT_KEPT = 64  # compiled schedules that requests named by digest or version


@dataclass(frozen=True)
class InForce:
    """A schedule ready to run. `tier` is None when a request named the schedule itself.

    `relative_cost` is its MACs over those of the teacher that is in force as `reference`.
    """

    tier: str | None
    version: int | None
    digest: str
    program: Program
    relative_cost: float

    @property
    def schedule(self) -> Schedule:
        """The document."""
        return self.program.schedule


class Schedules:
    """Tiers and explicit schedules of one model.

    `refresh` and `explicit` read the registry and block; `tier` and `tiers` only look at what was read. A refresh replaces
    the whole set in one assignment, so a reader in another thread sees the old set or the new one.
    """

    def __init__(self, open_catalog: Callable[[], Catalog], model: Model, teacher_steps: int) -> None:
        """`open_catalog` is called until it succeeds once: the store may be down when the server starts."""
        self._open_catalog = open_catalog
        self._catalog: Catalog | None = None
        self._model = model
        self._teacher = self._compile(teacher(model.ref, model.solver("ddim", teacher_steps)), REFERENCE, None)
        self._tiers: dict[str, InForce] = {}
        self._put({REFERENCE: self._teacher})
        self._explicit = lru_cache(EXPLICIT_KEPT)(self._resolve)

    def tiers(self) -> list[InForce]:
        """Everything in force, cheapest first."""
        return sorted(self._tiers.values(), key=lambda entry: entry.relative_cost)

    def tier(self, name: str) -> InForce:
        """What a tier means now. Raises `NotFound` naming the tiers there are."""
        try:
            return self._tiers[name]
        except KeyError:
            raise NotFound(f"there is no tier {name!r}; there are {sorted(self._tiers)}", param="tier") from None

    def default(self, wanted: str) -> str:
        """The tier of requests that name none: `wanted`, or the teacher while the registry has no such tier."""
        return wanted if wanted in self._tiers else REFERENCE

    def explicit(self, ref: str) -> InForce:
        """A schedule by version number, digest or its beginning. Raises `NotFound` and `InvalidInput`."""
        for entry in self._tiers.values():
            if entry.digest == ref:  # needs no registry, and the teacher may not be in it
                return replace(entry, tier=None)
        try:
            return self._rated(self._explicit(ref), self._tiers[REFERENCE])
        except NotFound as error:
            raise NotFound(error.message, param="schedule") from error
        except InvalidInput as error:
            raise InvalidInput(error.message, param="schedule") from error

    def refresh(self) -> bool:
        """Look at the registry once. On failure everything stays as it is, is logged and counted, and False comes back.

        Raises `Unsupported` or `InvalidInput` when the registry could not be opened for a reason that will not pass.
        """
        try:
            tiers = {REFERENCE: self._teacher} | self._read(self._open().tiers())
        except (Unsupported, InvalidInput) as error:  # a wrong address or store does not mend itself
            if self._catalog is None:
                raise
            self._failed("the registry could not be read: %s", error)
            return False
        except Exception as error:  # whatever a store does, the watch goes on
            self._failed("the registry could not be read: %s", error)
            return False
        self._put(tiers)
        metrics.registry_last_success_timestamp_seconds.set(time.time())
        return True

    async def watch(self, seconds: float) -> None:
        """Refresh for ever, with pauses."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.refresh)

    def _read(self, names: list[str]) -> dict[str, InForce]:
        """Compile what is new. A tier whose alias or document is bad keeps what it meant before."""
        known = {entry.digest: entry for entry in self._tiers.values()}
        tiers = {}
        for name in names:
            try:
                alias = self._open().alias(name)
                entry = known.get(alias.digest) or self._compile(self._open().schedule(alias.digest), None, None)
                tiers[name] = replace(entry, tier=name, version=alias.version)
            except StoreUnavailable:
                raise
            except FlexiError as error:
                self._failed("tier %s keeps its last good schedule: %s", name, error)
                if name in self._tiers:
                    tiers[name] = self._tiers[name]
        return tiers

    def _resolve(self, ref: str) -> InForce:
        schedule, version, _ = self._open().resolve(ref)
        return self._compile(schedule, None, version)

    def _compile(self, schedule: Schedule, tier: str | None, version: int | None) -> InForce:
        return InForce(tier, version, schedule.digest, self._model.compile(schedule), relative_cost=1.0)

    def _rated(self, entry: InForce, teacher: InForce) -> InForce:
        return replace(entry, relative_cost=self._model.macs.relative(entry.program, teacher.program))

    def _open(self) -> Catalog:
        if self._catalog is None:
            self._catalog = self._open_catalog()
        return self._catalog

    def _failed(self, text: str, *values: object) -> None:
        metrics.registry_errors_total.inc()
        log.warning(text, *values)

    def _put(self, tiers: dict[str, InForce]) -> None:
        """Put a set in force, rated by its own teacher, and show it in the metrics; what is not in force becomes 0."""
        tiers = {name: self._rated(entry, tiers[REFERENCE]) for name, entry in tiers.items()}
        for entry in self._tiers.values():
            if entry not in tiers.values():
                _info(entry).set(0)
        for name, entry in tiers.items():
            _info(entry).set(1)
            metrics.relative_cost.labels(name).set(entry.relative_cost)
        self._tiers = tiers


def _info(entry: InForce) -> Gauge:
    return metrics.schedule_info.labels(entry.tier, metrics.NO_ARM, entry.digest, entry.version or "")
