"""The experiments that split this server's traffic now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from registry.errors import FlexiError, StoreUnavailable
from registry.experiments.catalog import Experiments
from registry.experiments.declaration import Experiment
from registry.writer import now
from server.experiments.assign import arm_of, enrolled, hashed_unit
from server.requests.assignment import Assignment
from server.telemetry import metrics
from server.tiers.active import ActiveSchedule, ActiveSchedules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActiveExperiment:
    """An experiment at one stage of its ramp, with its arms' schedules compiled: of those arms that could be loaded."""

    experiment: Experiment
    stage: int
    arms: Mapping[str, ActiveSchedule]


class ActiveExperiments:
    """Follows the experiments' states by etag, as the watch follows aliases, and assigns requests.

    `refresh` blocks; it replaces the whole set in one assignment. While the store is away the last known set stays: an arm
    that does harm is then stopped by this server's own guard (`withdraw` is how), one that is over by the clock.
    """

    def __init__(
        self, open_experiments: Callable[[], Experiments], schedules: ActiveSchedules, clock: Callable[[], datetime] = now
    ) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away."""
        self._open = open_experiments
        self._schedules = schedules
        self._clock = clock
        self._seen: dict[str, tuple[str, ActiveExperiment | None]] = {}  # by name: the state's etag, and what it says
        self._by_tier: dict[str, ActiveExperiment] = {}
        self._faults: dict[str, str] = {}
        self._withdrawn: set[tuple[str, int]] = set()
        self._lock = threading.Lock()  # the event loop withdraws while a thread refreshes

    def running(self) -> list[ActiveExperiment]:
        """Those in force."""
        return list(self._by_tier.values())

    def assign(self, entry: ActiveSchedule, unit: str | None, request_id: str) -> tuple[ActiveSchedule, Assignment | None]:
        """What serves a request of this tier's traffic: its arm's schedule, or the tier's own. Pure but for what is running.

        A unit whose arm cannot be loaded stays in it and is served by the tier's own schedule: were it not counted, the arms
        would no longer be alike.
        """
        running = self._by_tier.get(entry.tier or "")
        if running is None or self._clock() >= running.experiment.end:
            return entry, None
        experiment = running.experiment
        key = request_id if experiment.unit == "request" else unit
        if key is None:
            return entry, Assignment(experiment, "no_unit")
        if not enrolled(experiment, running.stage, key):
            return entry, Assignment(experiment, "not_in_share")
        arm = arm_of(experiment, key).name
        served = running.arms.get(arm)
        assignment = Assignment(experiment, "enrolled", arm, hashed_unit(experiment.salt, key), fallback=served is None)
        return replace(served or entry, tier=entry.tier), assignment

    def bypassed(self, digest: str) -> Assignment | None:
        """For a request that names its schedule itself: the experiment that has it as an arm, if any."""
        for running in self._by_tier.values():
            if any(arm.digest == digest for arm in running.experiment.arms):
                return Assignment(running.experiment, "bypass")
        return None

    def withdraw(self, experiment: Experiment) -> bool:
        """Split no traffic by this version any more, whatever the registry says; False if it was withdrawn before."""
        version = experiment.name, experiment.version
        with self._lock:
            if version in self._withdrawn:
                return False
            self._withdrawn.add(version)
            self._put(self._seen)
        return True

    def refresh(self) -> None:
        """Look at all experiments once. One whose documents are bad is not in force; an arm whose schedule is bad falls back.

        Either is said once, and looked at again the next time.
        """
        try:
            experiments = self._open()
            names = experiments.names()
            seen = {name: self._look(experiments, name) for name in names}
        except StoreUnavailable:
            return  # the watch tells it
        with self._lock:
            self._seen = {name: found for name, found in seen.items() if found}
            self._put(self._seen)

    def _look(self, experiments: Experiments, name: str) -> tuple[str, ActiveExperiment | None] | None:
        before = self._seen.get(name)
        try:
            found = experiments.changed(name, before[0] if before else None)
            if found is None:
                return before
            state, etag = found
            if state.status != "running":
                return etag, None
            experiment = experiments.experiment(name, state.version)
        except StoreUnavailable:
            raise
        except FlexiError as error:
            self._tell(name, f"the experiment {name} is not in force: {error}")
            return None
        arms, faults = dict[str, ActiveSchedule](), list[str]()
        for arm in experiment.arms:
            try:
                arms[arm.name] = self._schedules.explicit(arm.digest)
            except StoreUnavailable:
                raise
            except FlexiError as error:
                faults.append(f"its arm {arm.name} falls back on the tier's own schedule: {error}")
        self._tell(name, "; ".join((f"the experiment {name} runs", *faults)) if faults else "")
        return "" if faults else etag, ActiveExperiment(experiment, state.stage, arms)

    def _tell(self, name: str, fault: str) -> None:
        if fault and self._faults.get(name) != fault:
            log.warning("%s", fault)
        self._faults[name] = fault

    def _put(self, seen: Mapping[str, tuple[str, ActiveExperiment | None]]) -> None:
        by_tier: dict[str, ActiveExperiment] = {}
        for _, running in seen.values():
            if running and (running.experiment.name, running.experiment.version) not in self._withdrawn:
                by_tier.setdefault(running.experiment.tier, running)  # of two, the first by name, on every server
        for name in {each.experiment.name for each in (*by_tier.values(), *self._by_tier.values())}:
            metrics.experiment_running.labels(name).set(any(each.experiment.name == name for each in by_tier.values()))
        self._by_tier = by_tier
