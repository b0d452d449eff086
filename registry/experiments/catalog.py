"""The experiments of a model in a store: immutable declarations, and states that are moved by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import JsonValue

from registry.compare_and_swap import attempts, write
from registry.document import Name, canonical
from registry.errors import Conflict, NotFound, Tampered
from registry.experiments.declaration import Action, Experiment, ExperimentState, transition
from registry.records import Record
from registry.stores.base import ObjectStore
from registry.writer import Writer


class DeclaredExperiment(NamedTuple):
    """An experiment in the version that its state names."""

    experiment: Experiment
    state: ExperimentState


class Hold(Record):
    """Which experiment may split a tier's traffic: the one that took hold of it last while no other one ran."""

    tier: Name
    experiment: Name


class ExperimentCatalog:
    """The experiments by name. A state keeps its whole history: who did what, when, where and why."""

    def __init__(self, store: ObjectStore, model: str, writer: Writer | None = None) -> None:
        self.store = store
        self.model = model
        self._writer = writer or Writer.here()
        self._known: dict[tuple[str, int], Experiment] = {}  # declarations never change: each is read once

    def names(self) -> list[str]:
        """The names of all experiments, sorted."""
        return list(self.store.folders(f"{self.model}/experiments/"))

    def held_tiers(self) -> list[str]:
        """The tiers that an experiment ever held, sorted: however many there were, those that run hold one of these."""
        folder = f"{self.model}/holds/"
        return [key.removeprefix(folder).removesuffix(".json") for key in self.store.list(folder)]

    def holder_if_changed(self, tier: str, etag: str | None) -> tuple[str, str] | None:
        """Which experiment holds a tier, and the etag of that record; None if `etag` is still the current one.

        Raises `NotFound` where none does.
        """
        key = self._hold_key(tier)
        stored = self.store.get_if_changed(key, etag) if etag else self.store.get(key)
        return stored and (Hold.read(key, stored.data).experiment, stored.etag)

    def state(self, name: str) -> ExperimentState:
        """What an experiment does now. Raises `NotFound`."""
        return self._read(name)[0]

    def state_if_changed(self, name: str, etag: str | None) -> tuple[ExperimentState, str] | None:
        """The state of an experiment and its new etag; None if `etag` is still the current one."""
        key = self._state_key(name)
        stored = self.store.get_if_changed(key, etag) if etag else self.store.get(key)
        return stored and (self._parse(name, stored.data), stored.etag)

    def experiment(self, name: str, version: int) -> Experiment:
        """One version of a declaration. Raises `NotFound`, and `Tampered` where another one lies in its place."""
        if (name, version) not in self._known:
            key = self._key(name, version)
            try:
                experiment = Experiment.parse(self.store.get(key).data)
            except NotFound:
                raise NotFound(f"{self.model} has no version {version} of it", param=name) from None
            if (experiment.name, experiment.version) != (name, version):
                raise Tampered(f"declares version {experiment.version} of {experiment.name}", param=key)
            self._known[name, version] = experiment
        return self._known[name, version]

    def declared(self, name: str) -> DeclaredExperiment:
        """An experiment in its current version, and its state. Raises `NotFound`."""
        state = self.state(name)
        return DeclaredExperiment(self.experiment(name, state.version), state)

    def all(self) -> Iterator[DeclaredExperiment]:
        """All experiments with their states, sorted by name, without those whose declaration was cut off half-way."""
        for name in self.names():
            try:
                declared = self.declared(name)
            except NotFound:
                continue
            yield declared

    def declare(self, experiment: Experiment, reason: str = "") -> ExperimentState:
        """Keep a declaration. Declaring the same once more changes nothing.

        Raises `InvalidInput` when it is not the next version or the last one is not over, and `Conflict` when there is another
        declaration of this version.
        """
        key = self._key(experiment.name, experiment.version)
        document = canonical(experiment.model_dump(mode="json"))
        before, _ = self._read_or_none(experiment.name)
        if not (before and before.version == experiment.version):
            self._next(before, "declare", experiment, reason)  # refuses before anything is written
        try:
            self.store.create(key, document)
        except Conflict:
            if self.store.get(key).data != document:
                message = f"version {experiment.version} of {experiment.name} is declared otherwise: a change is a new version"
                raise Conflict(message, param="version") from None
        if before and before.version == experiment.version:
            return before
        return self._move(experiment.name, lambda state: self._next(state, "declare", experiment, reason))

    def act(
        self,
        name: str,
        action: Action,
        reason: str = "",
        *,
        version: int | None = None,
        stage: int | None = None,
        transitions: int | None = None,
        evidence: dict[str, JsonValue] | None = None,
    ) -> ExperimentState:
        """Start, ramp, pause, stop, kill, roll back or finish.

        Raises `InvalidInput` for a move that cannot be made now, and `Conflict` if the experiment is not at `version` or
        `stage` any more, if its history has more than so many `transitions` or, at a start, if another one runs on its tier.
        """
        experiment = self.declared(name).experiment

        def following(state: ExperimentState | None) -> ExperimentState:
            if state and transitions is not None and len(state.history) != transitions:
                raise _changed(state)
            if state and version is not None and state.version != version:
                raise Conflict(f"{name} is at version {state.version}, not {version}", param="version")
            if state and stage is not None and state.stage != stage:
                raise Conflict(f"{name} is at stage {state.stage + 1} of its ramp, not {stage + 1}", param="stage")
            current = self.experiment(name, state.version) if state else experiment
            return self._next(state, action, current, reason, evidence)

        if action != "start":
            return self._move(name, following)
        following(self.state(name))  # refuses before anything is written
        self._take_hold(experiment)
        state = self._move(name, following)
        if (holder := self._holder(experiment.tier)[0]) != name:
            self.act(name, "pause", f"{holder} has taken hold of tier {experiment.tier}")
            raise _taken(experiment.tier, holder)
        return state

    def _take_hold(self, experiment: Experiment) -> None:
        """Make the tier this experiment's own, unless another one runs on it. Raises `Conflict`.

        Who starts takes hold, looks at all others, runs, and looks whether the hold is still its own; if not, it pauses. Of
        two, one took hold later: if after the other's last look, it sees that one run; if before, the other sees the hold
        gone. So two never both run; that both give way can happen.
        """
        key, mine = self._hold_key(experiment.tier), Hold(tier=experiment.tier, experiment=experiment.name)
        self._refuse_beside(experiment)
        for attempt in attempts():
            _, etag = self._holder(experiment.tier)
            with attempt:
                write(self.store, key, mine.document(), etag)
                break
        else:
            raise Conflict(f"tier {experiment.tier} is wanted by many at the same time: try again", param="tier")
        self._refuse_beside(experiment)

    def _refuse_beside(self, experiment: Experiment) -> None:
        for other, state in self.all():
            if state.name != experiment.name and state.status == "running" and other.tier == experiment.tier:
                raise _taken(experiment.tier, state.name)

    def _holder(self, tier: str) -> tuple[str, str]:
        """Who holds the tier, and the etag of that record; both empty while nobody does."""
        try:
            return self.holder_if_changed(tier, None) or ("", "")
        except NotFound:
            return "", ""

    def _move(self, name: str, following: Callable[[ExperimentState | None], ExperimentState]) -> ExperimentState:
        key = self._state_key(name)
        for attempt in attempts():
            before, etag = self._read_or_none(name)
            after = following(before)
            with attempt:
                write(self.store, key, after.document(), etag)
                return after
        raise Conflict(f"{name} is moved by many at the same time: try again", param="name")

    def _next(
        self,
        before: ExperimentState | None,
        action: Action,
        experiment: Experiment,
        reason: str,
        evidence: dict[str, JsonValue] | None = None,
    ) -> ExperimentState:
        by, time = self._writer, self._writer.clock()
        return transition(
            before, action, experiment, time=time, author=by.author, host=by.host, reason=reason, evidence=evidence
        )

    def _read(self, name: str) -> tuple[ExperimentState, str]:
        try:
            data, etag = self.store.get(self._state_key(name))
        except NotFound:
            raise NotFound(f"is no experiment of {self.model}", param=name) from None
        return self._parse(name, data), etag

    def _read_or_none(self, name: str) -> tuple[ExperimentState | None, str]:
        try:
            return self._read(name)
        except NotFound:
            return None, ""

    def _parse(self, name: str, data: bytes) -> ExperimentState:
        key = self._state_key(name)
        state = ExperimentState.read(key, data)
        if state.name != name:
            raise Tampered(f"is the state of {state.name}", param=key)
        return state

    def _hold_key(self, tier: str) -> str:
        return f"{self.model}/holds/{tier}.json"

    def _state_key(self, name: str) -> str:
        return f"{self.model}/experiments/{name}/state.json"

    def _key(self, name: str, version: int) -> str:
        return f"{self.model}/experiments/{name}/{version:06d}.json"


def _taken(tier: str, holder: str) -> Conflict:
    return Conflict(f"tier {tier} is taken by the experiment {holder}: stop that one first", param="tier")


def _changed(state: ExperimentState) -> Conflict:
    """For who decided on what an experiment was before its newest transition."""
    newest = state.history[-1]
    reason = f" ({newest.reason})" if newest.reason else ""
    said = f"{newest.action} by {newest.author} at {newest.time:%Y-%m-%d %H:%M:%S} UTC{reason}: it is {newest.status} now"
    return Conflict(f"was changed by somebody else meanwhile: {said}; look again", param=state.name)
