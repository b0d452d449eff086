"""The watch: follows the registry's aliases, puts what they mean in force, and holds on to the last good set."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput, StoreUnavailable, Unsupported
from registry.signing import TrustedKeys
from registry.tiers import REFERENCE
from server.telemetry import metrics
from server.telemetry.faults import Faults
from server.tiers.active import ActiveSchedule, ActiveSchedules
from server.tiers.last_good import KeptTier, LastGood
from server.tiers.looks import keep_looking, pause
from server.tiers.observer import RegistryObserver
from server.tiers.warnings import in_one_line, tier_warnings

log = logging.getLogger(__name__)

REGISTRY, DISK, UNSERVED = "the registry", "the disk", "all tiers"  # what may fail besides a tier, whose name has no space


class Watch:
    """One look costs a list and a conditional read for each tier; a schedule is read when its alias moved.

    A tier whose alias or schedule is bad keeps what it meant before, and so does one whose alias vanished: nothing that
    happens in the registry takes a tier away from a running server. `refresh` and `restore` block.
    """

    def __init__(
        self,
        schedules: ActiveSchedules,
        open_catalog: Callable[[], Catalog],
        last_good: LastGood | None = None,
        default_tier: str = REFERENCE,
        names_elsewhere: Callable[[], Sequence[str]] = tuple,
        observer: RegistryObserver | None = None,
    ) -> None:
        """`open_catalog` gives the same catalog each time, or raises while the store is away. `names_elsewhere` gives the names
        of other models of the registry that are the same weights: each look that finds no tier asks it; it raises nothing.
        """
        self._schedules = schedules
        self._default_tier = default_tier
        self._names_elsewhere = names_elsewhere
        self._open_catalog = open_catalog
        self._last_good = last_good
        self._observer = observer or RegistryObserver()
        self._etags: dict[str, str] = {}  # of the aliases that are in force
        self._faults = Faults(log)
        self._started = False  # nothing of a registry is in force yet
        self.fault: str | None = None  # why the registry could not be read the last time

    async def follow(self, seconds: float) -> None:
        """Refresh for ever, with pauses of about so many seconds."""
        await pause(seconds)  # it was looked at before
        await keep_looking(self.refresh, seconds)

    def refresh(self) -> bool:
        """Look at the registry once. On failure everything stays as it is, is logged and counted, and False comes back.

        Raises `Unsupported` or `InvalidInput` when a registry could not be opened for a reason that will not pass, and there
        is nothing in force yet.
        """
        try:
            tiers, etags, refused = self._read(self._open_catalog())
        except Exception as error:  # whatever a store does, the watch goes on
            if isinstance(error, Unsupported | InvalidInput) and not self._started:
                raise
            reason = error.text if isinstance(error, FlexiError) else error
            self.fault = f"the registry could not be read: {reason}"
            self._failed(REGISTRY, self.fault)
            self._observer.looked(False)
            return False
        self.fault = None
        self._observer.looked(True)
        self._faults.mended(REGISTRY)
        self._put(tiers, refused, () if tiers else self._names_elsewhere())
        self._etags = etags
        metrics.registry_last_success_timestamp_seconds.set(time.time())
        self._keep(tiers)
        return True

    def restore(self) -> bool:
        """Put the set in force that was kept on disk, whatever of it is still good; False where none was kept."""
        if self._last_good is None:
            return False
        try:
            kept = self._last_good.read()
        except FlexiError as error:
            self._faults.failed(DISK, str(error))  # once: it is asked at each look
            return False
        tiers, refused = {}, {}
        for tier in kept.tiers:
            try:
                tiers[tier.tier] = self._restored(tier, self._last_good.trusted)
            except FlexiError as error:
                refused[tier.tier] = str(error)
        if not self._started:
            log.warning("the registry is away: serving what it said at %s", kept.time.isoformat(timespec="seconds"))
        self._put(tiers, refused)
        metrics.registry_last_success_timestamp_seconds.set(kept.time.timestamp())
        return True

    def _read(self, catalog: Catalog) -> tuple[dict[str, ActiveSchedule], dict[str, str], dict[str, str]]:
        """What is to be in force now, the etags of the aliases that say so, and why other tiers are not in force at all."""
        before = {entry.tier: entry for entry in self._schedules.tiers() if entry.tier and entry.version}
        tiers, etags, refused = dict(before), dict[str, str](), dict[str, str]()
        for name in sorted({*catalog.tiers(), *before}):
            try:
                tiers[name], etags[name] = self._tier(catalog, name, before.get(name))
                self._faults.mended(name)
            except StoreUnavailable:
                raise
            except Exception as error:  # a bad document must freeze no other tier
                if kept := before.get(name) or self._kept_as(name):
                    tiers[name] = kept
                    self._failed(name, f"tier {name} keeps version {kept.version} ({kept.digest[:8]}): {error}")
                else:
                    metrics.registry_errors_total.inc()
                    refused[name] = str(error)
            metrics.tier_stale.labels(name).set(name not in etags)
        return tiers, etags, refused

    def _kept_as(self, tier: str) -> ActiveSchedule | None:
        """What it meant when this server, or the one before it, was last told; None where that is not known or not good."""
        if self._started or self._last_good is None:
            return None
        try:
            kept = next((one for one in self._last_good.read().tiers if one.tier == tier), None)
            return self._restored(kept, self._last_good.trusted) if kept else None
        except FlexiError:
            return None

    def _restored(self, kept: KeptTier, trusted: TrustedKeys | None) -> ActiveSchedule:
        """A tier as it was kept. Raises `FlexiError` for what is not good any more."""
        entry = self._schedules.known(kept.digest) or self._schedules.compiled(kept.verified(trusted), kept.signature)
        self._schedules.prepare(entry.schedule)
        return replace(entry, tier=kept.tier, version=kept.version)

    def _tier(self, catalog: Catalog, name: str, before: ActiveSchedule | None) -> tuple[ActiveSchedule, str]:
        """The schedule that a tier's alias names now, and the alias's etag."""
        seen = self._etags.get(name)
        moved = catalog.alias_if_changed(name, seen)
        if moved is None:
            if not (before and seen):
                raise AssertionError("only an alias that is in force can be unchanged")
            return before, seen
        alias, etag = moved
        self._observer.moved(alias)
        try:
            catalog.approvals.check(alias)
            entry = self._schedules.load(alias.digest)
        except StoreUnavailable:
            raise
        except FlexiError as error:
            self._observer.refused(alias, error.message)
            raise
        return replace(entry, tier=name, version=alias.version), etag

    def _put(self, tiers: dict[str, ActiveSchedule], refused: dict[str, str], elsewhere: Sequence[str] = ()) -> None:
        """Put it in force, and say which tiers are not."""
        self._schedules.put(tiers, refused, elsewhere)
        self._started = True
        metrics.default_tier_served.set(self._schedules.default(self._default_tier) == self._default_tier)
        if warnings := tier_warnings(self._schedules, self._default_tier):
            self._faults.failed(UNSERVED, in_one_line(warnings))
        else:
            self._faults.mended(UNSERVED)

    def _keep(self, tiers: dict[str, ActiveSchedule]) -> None:
        if self._last_good is None:
            return
        try:
            self._last_good.keep([_kept(name, entry) for name, entry in sorted(tiers.items())])
        except StoreUnavailable as error:
            self._failed(DISK, str(error))
            return
        self._faults.mended(DISK)

    def _failed(self, what: str, text: str) -> None:
        metrics.registry_errors_total.inc()
        self._faults.failed(what, text)


def _kept(name: str, entry: ActiveSchedule) -> KeptTier:
    assert entry.version, "what came from a registry has a version"
    document = entry.schedule.document().decode()
    return KeptTier(tier=name, version=entry.version, digest=entry.digest, schedule=document, signature=entry.signature)
