"""The candidate: a published schedule that a share of a tier's images is made again with, in idle time, before anybody gets it.

Each tier has one record, which keeps who declared or withdrew which candidate, when, where and why; it is moved by
compare-and-swap, and servers follow it by its etag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from registry.catalog import Catalog
from registry.compare_and_swap import attempts, write
from registry.document import Name, first_fault, misfit
from registry.errors import Conflict, InvalidInput, NotFound, Tampered
from registry.records import Digest, Number, Record, Text, checked
from registry.stores.base import ObjectStore
from registry.tiers import REFERENCE
from registry.writer import Writer

FOLDER = "candidates"
CandidateStatus = Literal["running", "stopped", "over", "promoted"]
_TEXT: TypeAdapter[str] = TypeAdapter(Text)


class DeclaredCandidate(Record):
    """Which schedule, for which tier, for what share of the tier's images (above 0, 1 for all), and until when."""

    tier: Name
    digest: Digest
    version: Number
    share: Annotated[float, Field(gt=0, le=1)]
    until: AwareDatetime


class CandidateMove(Record):
    """One entry of a tier's record: from `time` on its images are made again with this candidate, or no longer."""

    action: Literal["start", "stop"]
    candidate: DeclaredCandidate
    time: AwareDatetime
    author: Text
    host: Text
    reason: Text


class CandidateState(Record):
    """The candidates that a tier had (newest last)."""

    tier: Name
    history: tuple[CandidateMove, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_its_tier(self) -> CandidateState:
        if any(move.candidate.tier != self.tier for move in self.history):
            raise misfit("has a candidate for another tier", "history")
        return self

    @property
    def newest(self) -> DeclaredCandidate:
        """The candidate that was declared last, whether or not it is one now."""
        return self.history[-1].candidate

    def at(self, time: datetime) -> DeclaredCandidate | None:
        """The candidate at a time from the newest move on: none where it was withdrawn, or its time is over."""
        move = self.history[-1]
        return move.candidate if move.action == "start" and time < move.candidate.until else None

    def status(self, meant: str | None, time: datetime) -> CandidateStatus:
        """In one word, where the tier means the schedule of this digest, if any."""
        if meant == self.newest.digest:
            return "promoted"
        if self.history[-1].action == "stop":
            return "stopped"
        return "running" if self.at(time) else "over"

    def since(self) -> datetime:
        """When the newest candidate was first declared: a second share or time does not make its images others."""
        return next(move.time for move in self.history if move.candidate.digest == self.newest.digest)


class CandidateCatalog:
    """The candidates of a model's tiers."""

    def __init__(self, store: ObjectStore, model: str, writer: Writer | None = None) -> None:
        self.store = store
        self.model = model
        self._writer = writer or Writer.here()

    def tiers(self) -> list[str]:
        """The tiers that have or had a candidate, sorted."""
        return list(self.store.folders(f"{self.model}/{FOLDER}/"))

    def state(self, tier: str) -> CandidateState:
        """A tier's record. Raises `NotFound`."""
        return self._read(tier)[0]

    def state_if_changed(self, tier: str, etag: str | None) -> tuple[CandidateState, str] | None:
        """A tier's record and its new etag; None if `etag` is still the current one."""
        stored = self.store.get_if_changed(self._key(tier), etag) if etag else self.store.get(self._key(tier))
        return stored and (self._parse(tier, stored.data), stored.etag)

    def all(self) -> Iterator[CandidateState]:
        """The records of all tiers, sorted, without those that were cut off half-way."""
        for tier in self.tiers():
            try:
                state = self.state(tier)
            except NotFound:
                continue
            yield state

    def start(self, candidate: DeclaredCandidate, reason: str = "") -> CandidateState:
        """Declare a tier's candidate. The same one again changes its share and its end.

        Raises `InvalidInput` for a time that is over, and `Conflict` while the tier has another candidate.
        """
        now = self._writer.clock()
        if candidate.until <= now:
            raise InvalidInput(f"is over: {candidate.until:%Y-%m-%d %H:%M %Z}", param="until")

        def following(state: CandidateState | None) -> CandidateMove:
            if state and (other := state.at(now)) and other.digest != candidate.digest:
                said = f"version {other.version} ({other.digest[:8]}) until {other.until:%Y-%m-%d %H:%M %Z}"
                raise Conflict(f"tier {candidate.tier} has a candidate, {said}: stop that one first", param="tier")
            return self._entry("start", candidate, reason)

        return self._move(candidate.tier, following)

    def stop(self, tier: str, reason: str = "") -> CandidateState:
        """Withdraw a tier's candidate; what was recorded stays. Raises `InvalidInput` where it has none."""

        def following(state: CandidateState | None) -> CandidateMove:
            candidate = state.at(self._writer.clock()) if state else None
            if candidate is None:
                raise InvalidInput(f"tier {tier} of {self.model} has no candidate", param="tier")
            return self._entry("stop", candidate, reason)

        return self._move(tier, following)

    def _move(self, tier: str, following: Callable[[CandidateState | None], CandidateMove]) -> CandidateState:
        for attempt in attempts():
            before, etag = self._read_or_none(tier)
            entry = following(before)
            state = CandidateState(tier=tier, history=(*(before.history if before else ()), entry))
            with attempt:
                write(self.store, self._key(tier), state.document(), etag)
                return state
        raise Conflict(f"the candidate of tier {tier} is moved by many at the same time: try again", param="tier")

    def _entry(self, action: Literal["start", "stop"], candidate: DeclaredCandidate, reason: str) -> CandidateMove:
        by, said = self._writer, checked(_TEXT, reason, "reason")
        return CandidateMove(action=action, candidate=candidate, time=by.clock(), author=by.author, host=by.host, reason=said)

    def _read(self, tier: str) -> tuple[CandidateState, str]:
        try:
            data, etag = self.store.get(self._key(tier))
        except NotFound:
            raise NotFound(f"tier {tier} of {self.model} never had a candidate", param="tier") from None
        return self._parse(tier, data), etag

    def _read_or_none(self, tier: str) -> tuple[CandidateState | None, str]:
        try:
            return self._read(tier)
        except NotFound:
            return None, ""

    def _parse(self, tier: str, data: bytes) -> CandidateState:
        key = self._key(tier)
        state = CandidateState.read(key, data)
        if state.tier != tier:
            raise Tampered(f"is the record of tier {state.tier}", param=key)
        return state

    def _key(self, tier: str) -> str:
        return f"{self.model}/{FOLDER}/{tier}/state.json"


def candidate_of(catalog: Catalog, tier: str, ref: str, share: float, until: datetime) -> DeclaredCandidate:
    """What an operator means by a tier and a version number or a digest: a candidate that the tier's images say something of.

    Raises `NotFound` and `InvalidInput` naming what is not there, is no candidate, or was made for other weights.
    """
    if tier == REFERENCE:
        raise InvalidInput("reference is the teacher, with which candidates are compared", param="tier")
    tiers = catalog.tiers()
    if tier not in tiers:
        raise NotFound(f"{catalog.model} has no tier {tier}, only {', '.join(tiers)}", param="tier")
    meant = catalog.alias(tier)
    schedule, version, _ = catalog.resolve(ref)
    if version is None:
        published = catalog.version_log.of(schedule.digest)
        if published is None:
            raise NotFound("has no version yet: publish it", param=schedule.digest)
        version = published.number
    called = f"version {version} ({schedule.digest[:8]})"
    if schedule.digest == meant.digest:
        raise InvalidInput(f"{called} is what tier {tier} means already: there is nothing to compare", param="schedule")
    if REFERENCE in tiers and catalog.alias(REFERENCE).digest == schedule.digest:
        raise InvalidInput(f"{called} is the teacher, with which candidates are compared", param="schedule")
    if schedule.model.fingerprint != catalog.schedule(meant.digest).model.fingerprint:
        raise InvalidInput(f"{called} is for other weights than what tier {tier} means", param="schedule")
    return _candidate(tier=tier, digest=schedule.digest, version=version, share=share, until=until)


def _candidate(**fields: Any) -> DeclaredCandidate:
    try:
        return DeclaredCandidate.model_validate(fields)
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(fault.text, param=fault.param) from error
