"""Reads from a registry what people are shown of it. One bad document hides no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from cachetools import LRUCache

from registry.catalog import Catalog
from registry.diff import Difference
from registry.errors import FlexiError, NotFound, StoreUnavailable, Tampered, Untrusted
from registry.experiments.candidates import CandidateCatalog
from registry.experiments.catalog import DeclaredExperiment, ExperimentCatalog
from registry.records import Alias, Target
from registry.schedule import Schedule
from registry.site.views import (
    LETTERS,
    ShownCandidate,
    ShownDifference,
    ShownExperiment,
    ShownExperiments,
    ShownFigures,
    ShownFront,
    ShownMoves,
    ShownSchedule,
    ShownSignature,
    ShownTier,
    ShownTiers,
    ShownVersion,
)
from registry.writer import now

if TYPE_CHECKING:
    from registry.signing import TrustedKeys

VERSIONS = 200  # that are looked at for a front; the newest
MOVES = 20  # of each tier
READERS = 8  # schedules that are read together
KEPT = 1024  # schedules in memory, which never change
WHOLE = re.compile(r"[0-9a-f]{64}")  # a digest of which nothing is left out


class _Known(NamedTuple):
    """What a schedule's document says, or what is wrong with it."""

    figures: ShownFigures | None = None
    fault: str | None = None


class RegistryReader:
    """Of one model. Everything may raise `StoreUnavailable`; what is damaged or gone is said in its place.

    Schedules are verified against their digests, once each. Any thread may ask.
    """

    def __init__(self, catalog: Catalog, trusted: TrustedKeys | None = None) -> None:
        """`catalog` without trusted keys: what they refuse is shown all the same, and said to be refused."""
        self._catalog = catalog
        self._guarded = Catalog(catalog.store, catalog.model, trusted=trusted) if trusted else None
        self._experiments = ExperimentCatalog(catalog.store, catalog.model)
        self._candidates = CandidateCatalog(catalog.store, catalog.model)
        self._schedules: LRUCache[str, Schedule] = LRUCache(KEPT)
        self._lock = Lock()

    def front(self, last: int = VERSIONS) -> ShownFront:
        """The newest versions with what they cost and are worth."""
        versions = self._catalog.versions(last)
        tiers = self._tiers_by_digest()
        digests = {version.digest for version in versions}
        with ThreadPoolExecutor(READERS) as readers:
            figures = dict(zip(digests, readers.map(self._figures, digests), strict=True))
        best = front_of({digest: known.figures for digest, known in figures.items() if known.figures})
        shown = [
            ShownVersion(
                **version.model_dump(include={"digest", "time", "author", "note"}),
                version=version.number,
                tiers=tiers.get(version.digest, []),
                on_front=version.digest in best,
                figures=figures[version.digest].figures,
                fault=figures[version.digest].fault,
            )
            for version in reversed(versions)
        ]
        older = versions[0].number - 1 if versions else 0
        return ShownFront(model=self._catalog.model, versions=shown, older=older)

    def tiers(self) -> ShownTiers:
        """All tiers with their newest moves."""
        return ShownTiers(model=self._catalog.model, tiers=[self._tier(name) for name in self._catalog.tiers()])

    def moves(self, tier: str, last: int) -> ShownMoves:
        """A tier's history. Raises `NotFound`."""
        alias = self._catalog.alias(tier)
        history = islice(self._catalog.tier_aliases.backwards(alias), last)
        return ShownMoves(tier=tier, moves=alias.moves, history=list(history))

    def schedule(self, ref: str) -> ShownSchedule:
        """A schedule by tier, version number, digest or its beginning. Raises `NotFound`, `Tampered`, `InvalidInput`."""
        schedule = self._catalog.resolve(ref).schedule
        digest, catalog = schedule.digest, self._catalog
        beside = catalog.store.list(f"{catalog.model}/artifacts/{digest}/")
        return ShownSchedule(
            model=catalog.model,
            digest=digest,
            versions=[version.number for version in catalog.versions(VERSIONS) if version.digest == digest],
            tiers=self._tiers_by_digest().get(digest, []),
            figures=figures_of(schedule),
            signature=self._signature(digest),
            artifacts=[key.rpartition("/")[2] for key in beside],
            document=schedule,
        )

    def difference(self, a: str, b: str) -> ShownDifference:
        """What changes from a to b, each as in `schedule`."""
        one, other = (self._schedule(ref) if WHOLE.fullmatch(ref) else self._catalog.resolve(ref).schedule for ref in (a, b))
        found = Difference(one, other).document()
        return ShownDifference(a=figures_of(one), b=figures_of(other), same=one.digest == other.digest, **found)

    def experiments(self) -> ShownExperiments:
        """All experiments, with their whole history."""
        shown, faults = list[ShownExperiment](), list[str]()
        for name in self._experiments.names():
            try:
                shown.append(_shown(self._experiments.declared(name)))
            except StoreUnavailable:
                raise
            except FlexiError as error:
                faults.append(f"{name}: {error.message}")
        return ShownExperiments(model=self._catalog.model, experiments=shown, faults=faults)

    def _tier(self, name: str) -> ShownTier:
        try:
            alias = self._catalog.alias(name)
            back = self._catalog.tier_aliases.before(alias)
        except StoreUnavailable:
            raise
        except FlexiError as error:
            return ShownTier(
                tier=name, digest=None, version=None, moves=0, back=None, history=[], figures=None, fault=error.message
            )
        known = self._figures(alias.digest)
        return ShownTier(
            tier=name,
            digest=alias.digest,
            version=alias.version,
            moves=alias.moves,
            back=Target(digest=back.digest, version=back.version) if back else None,
            history=list(islice(self._catalog.tier_aliases.backwards(alias), MOVES)),
            figures=known.figures,
            candidate=self._candidate(alias),
            fault=known.fault,
        )

    def _candidate(self, alias: Alias) -> ShownCandidate | None:
        """A record that is damaged, which servers say in their logs, is shown as none."""
        try:
            state = self._candidates.state(alias.tier)
        except StoreUnavailable:
            raise
        except FlexiError:
            return None
        move = state.history[-1]
        return ShownCandidate(
            candidate=state.newest,
            status=state.status(alias.digest, now()),
            time=move.time,
            author=move.author,
            reason=move.reason,
        )

    def _aliases(self) -> Iterable[Alias]:
        for name in self._catalog.tiers():
            try:
                yield self._catalog.alias(name)
            except StoreUnavailable:
                raise
            except FlexiError:
                continue  # `tiers` says what is wrong with it

    def _tiers_by_digest(self) -> dict[str, list[str]]:
        tiers = dict[str, list[str]]()
        for alias in self._aliases():
            tiers.setdefault(alias.digest, []).append(alias.tier)
        return tiers

    def _figures(self, digest: str) -> _Known:
        try:
            return _Known(figures_of(self._schedule(digest)))
        except StoreUnavailable:
            raise
        except FlexiError as error:
            return _Known(fault=error.message)

    def _schedule(self, digest: str) -> Schedule:
        """Read once: it never changes. Raises as `Catalog.schedule`."""
        with self._lock:
            schedule = self._schedules.get(digest)
        if schedule is None:
            schedule = self._catalog.schedule(digest)
            with self._lock:
                self._schedules[digest] = schedule
        return schedule

    def _signature(self, digest: str) -> ShownSignature:
        keys = self._catalog.store.list(f"{self._catalog.model}/signatures/{digest}/")
        signers = [key.rpartition("/")[2].removesuffix(".json") for key in keys]
        if self._guarded is None:
            if not signers:
                return ShownSignature(signers=[], state="unsigned", text="nobody signed it, and no trusted keys are set")
            text = f"signed by {', '.join(signers)}; not verified here: no trusted keys are set"
            return ShownSignature(signers=signers, state="not_verified", text=text)
        try:
            _, signature = self._guarded.schedule_and_signature(digest)
        except (Tampered, NotFound) as error:
            return ShownSignature(signers=signers, state="tampered", text=error.message)
        except Untrusted as error:
            return ShownSignature(signers=signers, state="untrusted", text=error.text)
        by = signature.key if signature else None
        return ShownSignature(signers=signers, state="trusted", by=by, text=f"signed by the trusted key {by}")


def figures_of(schedule: Schedule) -> ShownFigures:
    """What its document says; where it says no cost, as the server's own teacher's does not, all steps in full cost 1."""
    cost, fidelity, validated, counts = schedule.cost, schedule.fidelity, schedule.validated, schedule.counts()
    return ShownFigures(
        strip="".join(LETTERS[step.kind] for step in schedule.steps()),
        steps=counts,
        teacher_steps=schedule.solver.teacher_steps,
        solver=schedule.solver.name,
        relative_cost=cost.relative if cost else 1.0 if counts["full"] == schedule.solver.teacher_steps else None,
        macs=cost.macs if cost else None,
        rfid=fidelity.rfid if fidelity else None,
        psnr=fidelity.psnr if fidelity else None,
        images=fidelity.images if fidelity else None,
        clip_score=fidelity.clip_score if fidelity else None,
        accuracy=fidelity.accuracy if fidelity else None,
        guidance=list(validated.guidance) if validated else [],
        sizes=[f"{width}x{height}" for height, width in validated.sizes] if validated else [],
    )


def front_of(figures: Mapping[str, ShownFigures]) -> set[str]:
    """The digests that no other one beats: none has less of cost or rFID and no more of the other. Unmeasured ones are out."""
    measured = sorted(
        (known.relative_cost, known.rfid, digest)
        for digest, known in figures.items()
        if known.relative_cost is not None and known.rfid is not None
    )
    best, lowest = set[str](), float("inf")
    for _, rfid, digest in measured:
        if rfid < lowest:
            best.add(digest)
            lowest = rfid
    return best


def _shown(declared: DeclaredExperiment) -> ShownExperiment:
    experiment, state = declared
    return ShownExperiment(
        name=state.name,
        status=state.status,
        version=state.version,
        stage=state.stage,
        share=experiment.ramp[state.stage].share if state.status == "running" else 0.0,
        transitions=len(state.history),
        history=list(reversed(state.history)),
        declaration=experiment,
    )
