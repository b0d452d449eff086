"""The catalog: publish, resolve, promote, roll back. Meaning on top of a store's verbs, for one model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from registry.approvals.approvals import Approvals
from registry.document import Name
from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, Tampered, Unsupported
from registry.records import Action, Alias, Move, Removal, Resolved, Target, Text, Version, checked
from registry.schedule import Schedule
from registry.stores.base import ObjectStore
from registry.tiers import REFERENCE, TierAliases, moved_meanwhile
from registry.versions import VersionLog
from registry.writer import Writer, now

if TYPE_CHECKING:
    from registry.signing import Signature, SigningKey, TrustedKeys

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[0-9]{1,7}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_TEXT: TypeAdapter[str] = TypeAdapter(Text)


class Catalog:
    """The schedules of one model: content-addressed, immutable, numbered; and the tiers that point at them.

    Whatever is made to point at a schedule that was there already is followed by one more write of that schedule, if it is
    missing: garbage collection (`registry.gc`) may have removed it in between.
    """

    def __init__(
        self,
        store: ObjectStore,
        model: str,
        *,
        clock: Callable[[], datetime] = now,
        author: str | None = None,
        trusted: TrustedKeys | None = None,
        approved_tiers: Collection[str] = (),
    ) -> None:
        """With `trusted` keys, `schedule` and what calls it raise `Untrusted` for a schedule that none of them signed.

        `approved_tiers` take a second person to promote, whatever the policy says.
        """
        self.model = checked(_NAME, model, "model")
        self.store = store
        self.writer = Writer.here(author, clock)
        checked(_TEXT, self.writer.author, "author")
        self.version_log = VersionLog(store, self.model, self.writer)
        self.tier_aliases = TierAliases(store, self.model, self.writer)
        self.approvals = Approvals(store, self.model, self.writer, trusted, approved_tiers)
        self._trusted = trusted

    def publish(self, schedule: Schedule, note: str = "") -> Version:
        """Keep a schedule and give it the next version number.

        Publishing a document again that is there changes nothing and returns the first version it has. One that was removed
        is put back, and another document with the same digest (the same behaviour, described by another cost, fidelity or
        provenance) leaves the first one in its place: both make a new version record, so that the act and its note are kept.
        """
        checked(_TEXT, note, "note")
        if schedule.model.name != self.model:
            raise InvalidInput(f"{schedule.model.name} is not {self.model}", param="model.name")
        known = self.version_log.of(schedule.digest) is not None
        if not known and self._put(schedule):
            return self.version_log.publish(schedule.digest, note)
        kept = self._kept(schedule.digest)
        again = known and kept != schedule
        version = (self.version_log.publish_again if again else self.version_log.publish)(schedule.digest, note)
        self._put(kept or schedule)  # after its record: what is there without one of this period, a collection takes
        return version

    def schedule(self, digest: str) -> Schedule:
        """The schedule with this whole digest, verified: see `schedule_and_signature`."""
        return self.schedule_and_signature(digest)[0]

    def schedule_and_signature(self, digest: str) -> tuple[Schedule, Signature | None]:
        """The schedule with this digest, and the signature that let it pass where there are trusted keys, else None.

        Raises `NotFound`, `Tampered` for a document that is not the one of this digest, and `Untrusted`.
        """
        key = self.schedule_key(digest)
        data = self._document(digest)
        try:
            schedule = Schedule.parse(data)
        except InvalidInput as error:
            raise Tampered(f"is not a schedule: {error.message}", param=key) from error
        except Unsupported as error:
            raise Unsupported(f"cannot be read: {error.message}", param=key) from error
        if schedule.digest != digest:
            raise Tampered(f"was changed after it was published: its digest is {schedule.digest}", param=key)
        if schedule.model.name != self.model:
            raise Tampered(f"is for the model {schedule.model.name}, not {self.model}", param=key)
        if self._trusted is None:
            return schedule, None
        return schedule, self._trusted.check(key, data, lambda by: self.store.get(self._signature_key(digest, by)).data)

    def sign(self, schedule: Schedule, key: SigningKey) -> None:
        """Vouch for a published schedule and its description. Signing again changes nothing.

        Raises `Conflict` if what was published under its digest is described otherwise: nobody should sign what they did
        not see. Raises `Tampered` if something else lies where the signature belongs.
        """
        stored = self._document(schedule.digest)
        if stored != schedule.document():
            message = f"{schedule.digest} was published with another description: look at it, and sign that one"
            raise Conflict(message, param="sign")
        name, signature = self._signature_key(schedule.digest, key.id), key.sign(stored).document()
        try:
            self.store.create(name, signature)
        except Conflict:
            if self.store.get(name).data != signature:
                raise Tampered("is not the signature that this key makes: remove it first", param=name) from None

    def is_signed(self, digest: str, key: SigningKey) -> bool:
        """Whether this key has signed the schedule as it is kept."""
        try:
            return self.store.get(self._signature_key(digest, key.id)).data == key.sign(self._document(digest)).document()
        except NotFound:
            return False

    def version(self, number: int) -> Version:
        """The record of one version."""
        return self.version_log.get(number)

    def versions(self, last: int | None = None) -> list[Version]:
        """All versions, or only the `last` so many; the newest at the end."""
        return self.version_log.last(last)

    def resolve(self, ref: str | int) -> Resolved:
        """What a tier, a version number, a digest or its beginning (8 hex digits or more) means now.

        Two round trips, one for a whole digest, however many schedules there are.
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
            raise Tampered(f"points at a schedule that is gone: {error.message}", param=f"tier {ref}") from error

    def attach(self, digest: str, name: str, data: bytes) -> None:
        """Keep a file beside a schedule: its report, its pictures. What is there already under this name stays."""
        with suppress(Conflict):
            self.store.create(f"{self.model}/artifacts/{digest}/{name}", data)

    def alias(self, tier: str) -> Alias:
        """What a tier means now, and its newest moves."""
        return self.tier_aliases.read(tier)[0]

    def alias_if_changed(self, tier: str, etag: str | None) -> tuple[Alias, str] | None:
        """A tier's alias and its new etag; None if `etag` is still the current one."""
        return self.tier_aliases.read_if_changed(tier, etag)

    def aliases(self) -> list[Alias]:
        """The aliases of all tiers, sorted by name. One that is damaged fails the call: see `tiers` to read one by one."""
        return [self.alias(tier) for tier in self.tiers()]

    def tiers(self) -> list[str]:
        """The names of all tiers, sorted."""
        return self.tier_aliases.names()

    def history(self, tier: str, last: int | None = None) -> tuple[Move, ...]:
        """All moves of a tier, or only the `last` so many; the newest at the end."""
        return tuple(islice(self.tier_aliases.backwards(self.alias(tier)), last))[::-1]

    def promote(self, tier: str, ref: str | int, reason: str = "", *, moves: int | None = None) -> Alias:
        """Let a tier mean this schedule from now on. Nothing changes if it means this version already.

        moves: how often the tier was moved when this was decided on (`Alias.moves`; 0 for a new one): raises `Conflict`, which
        says what happened since, if that is not so any more. Raises `NeedsApproval` where a second person must approve first.
        """
        schedule, target = self.target(tier, ref)

        def choose(before: Alias | None) -> Target:
            now_at = before.moves if before else 0
            if moves is not None and moves != now_at:
                raise moved_meanwhile(tier, before)
            if not (before and (before.digest, before.version) == (target.digest, target.version)):
                self.approvals.refuse_unapproved(tier, target, now_at)
            return target

        return self._move("promote", tier, schedule, choose, reason)

    def target(self, tier: str, ref: str | int) -> tuple[Schedule, Target]:
        """What a tier is to mean. Raises `NotFound` for a schedule that was never published, `InvalidInput` for no teacher."""
        schedule, number, _ = self.resolve(ref)
        if tier == REFERENCE and schedule.counts()["full"] < schedule.solver.teacher_steps:
            raise InvalidInput("reference is the teacher, whose steps are all full", param="tier")
        if number is None:
            published = self.version_log.of(schedule.digest)
            if published is None:
                raise NotFound("has no version yet: publish it", param=schedule.digest)
            number = published.number
        return schedule, Target(digest=schedule.digest, version=number)

    def rollback(self, tier: str, reason: str = "", *, moves: int | None = None) -> Alias:
        """Let a tier mean what it meant before its current schedule. This too becomes a new entry of its history.

        Raises `Conflict` if somebody else moves the tier meanwhile, since it had so many `moves`: nobody meant to undo that.
        """
        seen = self.alias(tier)
        if moves is not None and moves != seen.moves:
            raise moved_meanwhile(tier, seen)
        target = self.tier_aliases.before(seen)
        if target is None:
            raise NotFound("never meant another schedule", param=f"tier {tier}")

        def choose(before: Alias | None) -> Target:
            if before != seen:
                raise moved_meanwhile(tier, before)
            return target

        return self._move("rollback", tier, self.schedule(target.digest), choose, reason)

    def schedule_key(self, digest: str) -> str:
        """Where the schedule with this digest is kept."""
        return f"{self.model}/schedules/{digest}.json"

    def removal_key(self, digest: str) -> str:
        """Where it is kept that this schedule was removed."""
        return f"{self.model}/removed/{digest}.json"

    def _move(
        self, action: Action, tier: str, schedule: Schedule, choose: Callable[[Alias | None], Target], reason: str
    ) -> Alias:
        alias = self.tier_aliases.move(action, tier, choose, checked(_TEXT, reason, "reason"))
        try:
            self._put(schedule)
        except FlexiError as error:  # the tier has moved: to report a failure would be a lie
            log.warning("tier %s was moved, but its schedule could not be looked at once more: %s", tier, error)
        return alias

    def _put(self, schedule: Schedule) -> bool:
        """Put a schedule in its place unless there is one already; returns whether there was none."""
        try:
            self.store.create(self.schedule_key(schedule.digest), schedule.document())
        except Conflict:
            return False
        return True

    def _kept(self, digest: str) -> Schedule | None:
        """The schedule in its place; None where there is none."""
        try:
            return self.schedule(digest)
        except NotFound:
            return None

    def _document(self, digest: str) -> bytes:
        try:
            return self.store.get(self.schedule_key(digest)).data
        except NotFound:
            raise self._absent(digest) from None

    def _absent(self, digest: str) -> NotFound:
        key = self.removal_key(digest)
        try:
            removal = Removal.read(key, self.store.get(key).data)
        except NotFound:
            return NotFound(f"is not in {self.model}", param=f"schedule {digest}")
        message = f"was removed by garbage collection at {removal.time:%Y-%m-%d %H:%M}: publish it again"
        return NotFound(message, param=f"schedule {digest}")

    def _whole_digest(self, start: str) -> str:
        if len(start) == 64:
            return start
        keys = self.store.list(f"{self.model}/schedules/{start}")
        digests = [key.rpartition("/")[2].removesuffix(".json") for key in keys if key.endswith(".json")]
        if not digests:
            raise NotFound(f"no schedule of {self.model} begins so", param=start)
        if len(digests) > 1:
            raise InvalidInput(f"begins the digests of {len(digests)} schedules: give more digits", param=start)
        return digests[0]

    def _signature_key(self, digest: str, by: str) -> str:
        return f"{self.model}/signatures/{digest}/{by}.json"
