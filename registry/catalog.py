"""The catalog: publish, resolve, promote, roll back. Meaning on top of a store's four verbs, for one model."""

from __future__ import annotations

import getpass
import logging
import os
import random
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, Tampered, Unsupported
from registry.records import Alias, Audit, Promotion, Resolved, Target, Text, Version
from registry.schedule import Name, Schedule
from registry.store import ObjectStore

if TYPE_CHECKING:
    from registry.signing import Signature, SigningKey, TrustedKeys

log = logging.getLogger(__name__)

ATTEMPTS = 30  # to win a number or an alias that others want too; each round has one winner
_NUMBER = re.compile(r"[0-9]{1,7}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_TEXT: TypeAdapter[str] = TypeAdapter(Text)


def models(store: ObjectStore) -> list[str]:
    """The models that have something in this registry. Walks all keys: meant for people, not for a request's path."""
    return sorted({key.partition("/")[0] for key in store.list("") if "/" in key})


def whoami() -> str:
    """The author of what this process writes: the login name, or the user's number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Catalog:
    """The schedules of one model: content-addressed, immutable, numbered; and the tiers that point at them."""

    def __init__(
        self,
        store: ObjectStore,
        model: str,
        *,
        clock: Callable[[], datetime] = now,
        author: str | None = None,
        trusted: TrustedKeys | None = None,
    ) -> None:
        """With `trusted` keys, `schedule` and what calls it raise `Untrusted` for a schedule that none of them signed."""
        self.model = _checked(_NAME, model, "model")
        self.author = _checked(_TEXT, author or whoami(), "author")
        self.store = store
        self._clock = clock
        self._trusted = trusted
        self._read_versions: dict[int, Version] = {}  # they never change: each is read once

    def publish(self, schedule: Schedule, note: str = "") -> Version:
        """Keep a schedule and give it the next version number.

        Publishing the same document again changes nothing and returns the version it has. Another document with the
        same digest (the same behaviour, described by another cost, fidelity or provenance) leaves the first one in its
        place and only makes a new version record, so that the act and its note are kept.
        """
        _checked(_TEXT, note, "note")
        if schedule.model.name != self.model:
            raise InvalidInput(f"model.name: {schedule.model.name} is not {self.model}", param="model.name")
        digest, redescribed = schedule.digest, False
        try:
            self.store.create(self._schedule_key(digest), schedule.document())
        except Conflict:
            redescribed = self.schedule(digest) != schedule
        for attempt in range(ATTEMPTS):
            numbers = self._numbers()
            if not redescribed and (published := self._version_of(digest, numbers)):
                return published
            number = numbers[-1] + 1 if numbers else 1
            version = Version(number=number, digest=digest, time=self._clock(), author=self.author, note=note)
            try:
                self.store.create(self._version_key(number), version.document())
                return version
            except Conflict:
                _stand_back(attempt)
        raise Conflict("too many others publish at the same time: try again", param="version")

    def schedule(self, digest: str) -> Schedule:
        """The schedule with this (whole) digest. What was read is verified."""
        return self.signed(digest)[0]

    def signed(self, digest: str) -> tuple[Schedule, Signature | None]:
        """The same, and the signature that let it pass where there are trusted keys."""
        key = self._schedule_key(digest)
        data = self._get(key, f"schedule {digest}")
        try:
            schedule = Schedule.parse(data)
        except InvalidInput as error:
            raise Tampered(f"{key} is not a schedule: {error.message}", param=key) from error
        except Unsupported as error:
            raise Unsupported(f"{key} cannot be read: {error.message}", param=key) from error
        if schedule.digest != digest:
            raise Tampered(f"{key} was changed after it was published: its digest is {schedule.digest}", param=key)
        if schedule.model.name != self.model:
            raise Tampered(f"{key} is for the model {schedule.model.name}, not {self.model}", param=key)
        if self._trusted is None:
            return schedule, None
        return schedule, self._trusted.check(key, data, lambda by: self.store.get(self._signature_key(digest, by)).data)

    def sign(self, schedule: Schedule, key: SigningKey) -> None:
        """Vouch for a published schedule and its description. Signing again changes nothing.

        Raises `Conflict` if what was published under its digest is described otherwise: nobody should sign what they did
        not see. Raises `Tampered` if something else lies where the signature belongs.
        """
        stored = self._get(self._schedule_key(schedule.digest), f"schedule {schedule.digest}")
        if stored != schedule.document():
            message = f"schedule {schedule.digest} was published with another description: look at it, and sign that one"
            raise Conflict(message, param="sign")
        name, signature = self._signature_key(schedule.digest, key.id), key.sign(stored).document()
        try:
            self.store.create(name, signature)
        except Conflict:
            if self.store.get(name).data != signature:
                raise Tampered(f"{name} is not the signature that this key makes: remove it first", param=name) from None

    def version(self, number: int) -> Version:
        """The record of one version."""
        if number not in self._read_versions:
            key = self._version_key(number)
            version = Version.read(key, self._get(key, f"version {number}"))
            if version.number != number:
                raise Tampered(f"{key} is the record of version {version.number}", param=key)
            self._read_versions[number] = version
        return self._read_versions[number]

    def versions(self, last: int | None = None) -> list[Version]:
        """All versions, or the `last` so many; the newest at the end."""
        numbers = self._numbers()
        return [self.version(number) for number in numbers[-last if last else 0 :]]

    def resolve(self, ref: str | int) -> Resolved:
        """What a tier, a version number, a digest or its beginning (8 hex digits or more) means now.

        A tier takes two reads: its alias, which holds digest and version, and the schedule.
        """
        ref = str(ref)
        if _NUMBER.fullmatch(ref):
            version = self.version(int(ref))
            return Resolved(self.schedule(version.digest), version.number, None)
        if _DIGEST.fullmatch(ref):
            return Resolved(self.schedule(self._whole_digest(ref)), None, None)
        alias = self.alias(ref)
        try:
            return Resolved(self.schedule(alias.digest), alias.version, alias.tier)
        except NotFound as error:
            raise Tampered(f"tier {ref} points at a schedule that is gone: {error.message}", param=ref) from error

    def attach(self, digest: str, name: str, data: bytes) -> None:
        """Keep a file beside a schedule: its report, its pictures. What is there already under this name stays."""
        with suppress(Conflict):
            self.store.create(f"{self.model}/artifacts/{digest}/{name}", data)

    def alias(self, tier: str) -> Alias:
        """What a tier means now, and meant before."""
        return self._alias(tier)[0]

    def moved(self, tier: str, etag: str | None) -> tuple[Alias, str] | None:
        """A tier's alias and its etag; None if that is still the one that was seen last."""
        key = self._alias_key(tier)
        found = self.store.changed(key, etag) if etag else self.store.get(key)
        return found and (self._read_alias(tier, found.data), found.etag)

    def aliases(self) -> list[Alias]:
        """The aliases of all tiers, sorted by name. One that is damaged fails the call: see `tiers` to read one by one."""
        return [self.alias(tier) for tier in self.tiers()]

    def tiers(self) -> list[str]:
        """The names of all tiers, sorted."""
        return self._stems("aliases/")

    def history(self, tier: str) -> tuple[Promotion, ...]:
        """All that a tier has meant, newest last."""
        return self.alias(tier).history

    def promote(self, tier: str, ref: str | int, reason: str = "") -> Alias:
        """Let a tier mean this schedule from now on. Nothing changes if it means this version already."""
        schedule, version, _ = self.resolve(ref)
        if tier == "reference" and schedule.counts()["full"] < schedule.solver.teacher_steps:
            raise InvalidInput("tier: reference is the teacher, whose steps are all full", param="tier")
        if version is None:
            published = self._version_of(schedule.digest, self._numbers())
            if published is None:
                raise NotFound(f"{schedule.digest} has no version yet: publish it", param=str(ref))
            version = published.number
        target = Target(digest=schedule.digest, version=version)
        return self._move("promote", tier, lambda before: target, reason)

    def rollback(self, tier: str, reason: str = "") -> Alias:
        """Let a tier mean what it meant before its current schedule. This too becomes a new entry of its history.

        Raises `Conflict` if somebody else moves the tier meanwhile: nobody meant to undo that.
        """
        seen = self.alias(tier)
        others = [entry for entry in seen.history if entry.digest != seen.digest]
        if not others:
            raise NotFound(f"tier {tier} never meant another schedule", param=tier)
        target = Target(digest=others[-1].digest, version=others[-1].version)

        def choose(before: Alias | None) -> Target:
            if before != seen:
                raise Conflict(f"tier {tier} was moved by somebody else meanwhile: look again", param=tier)
            return target

        return self._move("rollback", tier, choose, reason)

    def _move(
        self, action: Literal["promote", "rollback"], tier: str, choose: Callable[[Alias | None], Target], reason: str
    ) -> Alias:
        """Compare and swap the alias, with a new target chosen from what was there, until nobody else came first."""
        _checked(_TEXT, reason, "reason")
        key = self._alias_key(tier)
        for attempt in range(ATTEMPTS):
            try:
                before, etag = self._alias(tier)
            except NotFound:
                before, etag = None, ""
            to, time_, was = choose(before), self._clock(), before.history if before else ()
            if before and (before.digest, before.version) == (to.digest, to.version):
                return before
            entry = Promotion(digest=to.digest, version=to.version, time=time_, author=self.author, reason=reason)
            after = Alias(tier=tier, digest=to.digest, version=to.version, history=(*was, entry))
            try:
                if before:
                    self.store.swap(key, after.document(), etag)
                else:
                    self.store.create(key, after.document())
            except Conflict:
                _stand_back(attempt)
                continue
            self._write_audit(action, before, after)
            return after
        raise Conflict(f"tier {tier} is moved by many at the same time: try again", param=tier)

    def _write_audit(self, action: Literal["promote", "rollback"], before: Alias | None, after: Alias) -> None:
        newest = after.history[-1]
        audit = Audit(
            time=newest.time,
            author=newest.author,
            action=action,
            tier=after.tier,
            before=Target(digest=before.digest, version=before.version) if before else None,
            after=Target(digest=after.digest, version=after.version),
            reason=newest.reason,
        )
        key = f"{self.model}/audit/{newest.time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json"
        try:
            self.store.create(key, audit.document())
        except FlexiError as error:  # the tier has moved: to report a failure would be a lie, and its history knows
            log.warning("tier %s was moved, but the audit entry could not be written: %s", after.tier, error)

    def _alias(self, tier: str) -> tuple[Alias, str]:
        key = self._alias_key(tier)
        try:
            data, etag = self.store.get(key)
        except NotFound:
            raise NotFound(f"{self.model} has no tier {tier}", param=tier) from None
        return self._read_alias(tier, data), etag

    def _read_alias(self, tier: str, data: bytes) -> Alias:
        key = self._alias_key(tier)
        alias = Alias.read(key, data)
        if alias.tier != tier:
            raise Tampered(f"{key} is the alias of tier {alias.tier}", param=key)
        return alias

    def _get(self, key: str, what: str) -> bytes:
        try:
            return self.store.get(key).data
        except NotFound:
            raise NotFound(f"{self.model} has no {what}", param=what) from None

    def _stems(self, prefix: str) -> list[str]:
        """The names of the documents under a prefix; what else a person may have put there is not ours."""
        keys = self.store.list(f"{self.model}/{prefix}")
        return [key.rpartition("/")[2].removesuffix(".json") for key in keys if key.endswith(".json")]

    def _numbers(self) -> list[int]:
        return sorted(int(stem) for stem in self._stems("versions/") if stem.isdecimal())

    def _version_of(self, digest: str, numbers: list[int]) -> Version | None:
        """The newest of these versions with this digest."""
        found = (self.version(number) for number in reversed(numbers))
        return next((version for version in found if version.digest == digest), None)

    def _whole_digest(self, start: str) -> str:
        if len(start) == 64:
            return start
        found = self._stems(f"schedules/{start}")
        if not found:
            raise NotFound(f"{self.model} has no schedule {start}…", param=start)
        if len(found) > 1:
            raise InvalidInput(f"{start}… begins the digests of {len(found)} schedules: give more digits", param=start)
        return found[0]

    def _schedule_key(self, digest: str) -> str:
        return f"{self.model}/schedules/{digest}.json"

    def _signature_key(self, digest: str, by: str) -> str:
        return f"{self.model}/signatures/{digest}/{by}.json"

    def _version_key(self, number: int) -> str:
        return f"{self.model}/versions/{number:06d}.json"

    def _alias_key(self, tier: str) -> str:
        if tier == "auto" or _NUMBER.fullmatch(tier) or _DIGEST.fullmatch(tier):
            raise InvalidInput(f"tier: {tier} cannot name a tier: it means something else", param="tier")
        return f"{self.model}/aliases/{_checked(_NAME, tier, 'tier')}.json"


def _checked(adapter: TypeAdapter[str], value: str, field: str) -> str:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(f"{field}: {error.errors()[0]['msg']}, got {value[:80]!r}", param=field) from error


def _stand_back(attempt: int) -> None:
    time.sleep(random.uniform(0, min(0.25, 0.002 * 2**attempt)))
