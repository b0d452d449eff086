"""The experiments that split this server's traffic now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from typing_extensions import override

from registry.errors import FlexiError, StoreUnavailable
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Experiment
from registry.writer import now
from server.experiments.assign import arm_of, enrolled, hashed_unit
from server.requests.assignment import Assigner, Assignment
from server.telemetry import metrics
from server.telemetry.faults import Faults
from server.tiers.active import ActiveSchedule, ActiveSchedules
from server.tiers.observer import RegistryObserver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActiveExperiment:
    """An experiment at one stage of its ramp, with its arms' schedules compiled: of those arms that could be loaded."""

    experiment: Experiment
    stage: int
    arms: Mapping[str, ActiveSchedule]


class _Seen(NamedTuple):
    """What was last seen of an experiment: the etag of its state, "" to look again in any case, and what is active by it."""

    etag: str
    active: ActiveExperiment | None


class ActiveExperiments(Assigner):
    """Follows the experiments' states by etag, as the watch follows aliases, and assigns requests.

    `refresh` blocks; it replaces the whole set in one assignment. While the store is away the last known set stays: an
    experiment whose arm does harm is then ended by this server's own monitor (which calls `withdraw`), one whose time is over
    by the clock.
    """

    def __init__(
        self,
        open_experiments: Callable[[], ExperimentCatalog],
        schedules: ActiveSchedules,
        clock: Callable[[], datetime] = now,
        observer: RegistryObserver | None = None,
    ) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away."""
        self._open = open_experiments
        self._schedules = schedules
        self._clock = clock
        self._holds: dict[str, tuple[str, str]] = {}  # by tier: who holds it, and the etag of that record
        self._observer = observer or RegistryObserver()
        self._seen: dict[str, _Seen] = {}  # by the experiment's name
        self._by_tier: dict[str, ActiveExperiment] = {}
        self._withdrawn: set[tuple[str, int]] = set()
        self._lock = threading.Lock()  # around the three above: the event loop withdraws while a thread refreshes
        self._faults = Faults(log)  # by the experiment's name; `refresh` logs them

    def running(self) -> list[ActiveExperiment]:
        """The experiments that split traffic now, one of a tier at most."""
        return list(self._by_tier.values())

    @override
    def assign(self, entry: ActiveSchedule, unit: str | None, request_id: str) -> tuple[ActiveSchedule, Assignment | None]:
        """What serves a request of this tier's traffic: its arm's schedule, or the tier's own. Pure but for what is active.

        A unit whose arm cannot be loaded stays in it and is served by the tier's own schedule: were it not counted, the arms
        would no longer be alike.
        """
        active = self._by_tier.get(entry.tier or "")
        if active is None or self._clock() >= active.experiment.end:
            return entry, None
        experiment = active.experiment
        assigned_by = request_id if experiment.unit == "request" else unit
        if assigned_by is None:
            return entry, Assignment(experiment, "no_unit")
        if not enrolled(experiment, active.stage, assigned_by):
            return entry, Assignment(experiment, "not_in_share")
        arm = arm_of(experiment, assigned_by).name
        schedule = active.arms.get(arm)
        pseudonym = hashed_unit(experiment.salt, assigned_by)
        assignment = Assignment(experiment, "enrolled", arm, pseudonym, fallback=schedule is None)
        return replace(schedule or entry, tier=entry.tier), assignment

    @override
    def bypassed(self, digest: str) -> Assignment | None:
        for active in self._by_tier.values():
            if any(arm.digest == digest for arm in active.experiment.arms):
                return Assignment(active.experiment, "bypass")
        return None

    def withdraw(self, experiment: Experiment) -> bool:
        """Split no traffic by this version any more, whatever the registry says; False if it was withdrawn before."""
        version = experiment.name, experiment.version
        with self._lock:
            if version in self._withdrawn:
                return False
            self._withdrawn.add(version)
            self._enforce()
        return True

    def refresh(self) -> None:
        """Look once at the experiments that hold a tier. One whose documents are bad is not in force; an arm whose schedule is
        bad falls back. Either is said once, and looked at again the next time.
        """
        try:
            experiments = self._open()
            looks = {name: self._look(experiments, name) for name in self._holders(experiments)}
        except StoreUnavailable:
            return  # the watch logs it
        with self._lock:
            self._seen = {name: seen for name, seen in looks.items() if seen}
            self._enforce()

    def _holders(self, experiments: ExperimentCatalog) -> list[str]:
        """The names of those that hold a tier: all that run are among them. Raises `StoreUnavailable`.

        So a look costs a list and two conditional reads for each tier that was ever split, however many experiments are over.
        """
        holds = dict[str, tuple[str, str]]()
        for tier in experiments.held_tiers():
            before = self._holds.get(tier)
            try:
                changed = experiments.holder_if_changed(tier, before[1] if before else None)
                self._faults.mended(f"tier {tier}")
            except StoreUnavailable:
                raise
            except FlexiError as error:
                self._faults.failed(f"tier {tier}", f"which experiment holds tier {tier} cannot be read: {error}")
                changed = None
            if now_or_before := changed or before:
                holds[tier] = now_or_before
        self._holds = holds
        return sorted({name for name, _ in holds.values()})

    def _look(self, experiments: ExperimentCatalog, name: str) -> _Seen | None:
        """What is to be seen of an experiment now; None if its documents are bad. Raises `StoreUnavailable`."""
        before = self._seen.get(name)
        try:
            changed = experiments.state_if_changed(name, before.etag if before else None)
            if changed is None:
                return before
            state, etag = changed
            self._observer.followed(state)
            experiment = experiments.experiment(name, state.version) if state.status == "running" else None
        except StoreUnavailable:
            raise
        except FlexiError as error:
            self._faults.failed(name, f"the experiment {name} is not in force: {error}")
            return None
        if experiment is None:
            self._faults.mended(name)
            return _Seen(etag, None)
        arms, errors = self._load(experiment)
        if errors:
            falling_back = "; ".join(f"its arm {arm} falls back on the tier's own schedule: {errors[arm]}" for arm in errors)
            self._faults.failed(name, f"the experiment {name} runs, but {falling_back}")
        else:
            self._faults.mended(name)
        return _Seen("" if errors else etag, ActiveExperiment(experiment, state.stage, arms))

    def _load(self, experiment: Experiment) -> tuple[dict[str, ActiveSchedule], dict[str, FlexiError]]:
        """The schedules of the arms, and what is wrong with those that cannot be loaded. Raises `StoreUnavailable`."""
        schedules, errors = dict[str, ActiveSchedule](), dict[str, FlexiError]()
        for arm in experiment.arms:
            try:
                schedules[arm.name] = self._schedules.explicit(arm.digest)
                self._schedules.prepare(schedules[arm.name].schedule)
            except StoreUnavailable:
                raise
            except FlexiError as error:
                errors[arm.name] = error
        return schedules, errors

    def _enforce(self) -> None:
        """Let what was seen last split traffic, but for what was withdrawn here."""
        by_tier: dict[str, ActiveExperiment] = {}
        for _, active in self._seen.values():
            if active and (active.experiment.name, active.experiment.version) not in self._withdrawn:
                by_tier.setdefault(active.experiment.tier, active)  # of two, the first by name, on every server
        running = {active.experiment.name for active in by_tier.values()}
        for name in running | {active.experiment.name for active in self._by_tier.values()}:
            metrics.experiment_running.labels(name).set(name in running)
        self._by_tier = by_tier
