"""The tiers of a model: aliases that are moved by compare-and-swap, their whole history, and an audit entry of every move."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC

from pydantic import TypeAdapter

from registry.compare_and_swap import attempts, write
from registry.document import Name
from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, Tampered
from registry.records import Action, Alias, Audit, Move, Page, Target, checked
from registry.stores.base import ObjectStore
from registry.writer import Writer

log = logging.getLogger(__name__)

REFERENCE = "reference"  # the teacher's tier: every server has it, moved or not
PAGE = 25  # moves in a page, a constant of the format; an alias carries fewer than twice as many
_NAME: TypeAdapter[str] = TypeAdapter(Name)
OTHER_MEANING = r"auto|[0-9]{1,7}|[0-9a-f]{8,64}"  # what cannot name a tier


class TierAliases:
    """Aliases by the name of their tier. Only the swap of an alias moves a tier; all else follows from what it says.

    Pages and audit entries say nothing that the alias did not say, under keys that follow from it: whoever comes next writes
    what a writer who was killed left out, and two who write the same do no harm.
    """

    def __init__(self, store: ObjectStore, model: str, writer: Writer) -> None:
        self._store = store
        self._model = model
        self._writer = writer

    def names(self) -> list[str]:
        """The names of all tiers, sorted. What else a person may have put beside the aliases is not ours."""
        keys = self._store.list(f"{self._model}/aliases/")
        return [key.rpartition("/")[2].removesuffix(".json") for key in keys if key.endswith(".json")]

    def read(self, tier: str) -> tuple[Alias, str]:
        """A tier's alias and its etag. Raises `NotFound`."""
        key = self.key(tier)
        try:
            data, etag = self._store.get(key)
        except NotFound:
            raise NotFound(f"is not in {self._model}", param=f"tier {tier}") from None
        return self._parse(tier, data), etag

    def read_if_changed(self, tier: str, etag: str | None) -> tuple[Alias, str] | None:
        """A tier's alias and its new etag; None if `etag` is still the current one."""
        key = self.key(tier)
        stored = self._store.get_if_changed(key, etag) if etag else self._store.get(key)
        return stored and (self._parse(tier, stored.data), stored.etag)

    def backwards(self, alias: Alias) -> Iterator[Move]:
        """All moves, from the alias's newest one to the first; a page is read when it is reached."""
        yield from reversed(alias.history)
        for first in reversed(range(1, alias.archived + 1, PAGE)):
            yield from reversed(self.page(alias.tier, first).history)

    def before(self, alias: Alias) -> Move | None:
        """What a rollback leads to: the newest move that meant another schedule; None where there never was one."""
        return next((move for move in self.backwards(alias) if move.digest != alias.digest), None)

    def page(self, tier: str, first: int) -> Page:
        """The page that begins with this move."""
        key = self.page_key(tier, first)
        try:
            page = Page.read(key, self._store.get(key).data)
        except NotFound:
            raise Tampered(f"is gone: moves {first} to {first + PAGE - 1} of tier {tier}", param=key) from None
        if (page.tier, page.first, len(page.history)) != (tier, first, PAGE):
            raise Tampered(f"holds moves from {page.first} on of tier {page.tier}", param=key)
        return page

    def move(self, action: Action, tier: str, choose: Callable[[Alias | None], Target], reason: str) -> Alias:
        """Compare and swap the alias, with a new target chosen from what was there, until nobody else came first.

        Nothing changes where the tier points there already. Raises what `choose` raises, and `Conflict` where too many move it.
        """
        for attempt in attempts():
            before, etag = self._read_or_none(tier)
            to = choose(before)
            if before and (before.digest, before.version) == (to.digest, to.version):
                return before
            after = self._after(before, tier, self._entry(action, to, reason))
            with attempt:
                write(self._store, self.key(tier), after.document(), etag)
                self._write_audit_now_or_later(after)
                return after
        raise Conflict("is moved by many at the same time: try again", param=f"tier {tier}")

    def key(self, tier: str) -> str:
        """Where the alias of a tier is kept. Raises `InvalidInput` for what cannot name one."""
        if re.fullmatch(OTHER_MEANING, tier):
            raise InvalidInput(f"{tier} cannot name a tier: it means something else", param="tier")
        return f"{self._model}/aliases/{checked(_NAME, tier, 'tier')}.json"

    def page_key(self, tier: str, first: int) -> str:
        """Where the page that begins with this move is kept."""
        return f"{self._model}/history/{tier}/{first:06d}.json"

    def audit_key(self, tier: str, number: int, move: Move) -> str:
        """Where the audit entry of a move is kept; sorted by time."""
        return f"{self._model}/audit/{move.time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{tier}-{number:06d}.json"

    def _entry(self, action: Action, to: Target, reason: str) -> Move:
        author, host, time = self._writer.author, self._writer.host, self._writer.clock()
        return Move(digest=to.digest, version=to.version, time=time, author=author, reason=reason, action=action, host=host)

    def _after(self, before: Alias | None, tier: str, entry: Move) -> Alias:
        """The alias with one more move, once what it no longer carries is in a page and its last move in the audit."""
        history: tuple[Move, ...] = (entry,)
        archived = 0
        if before:
            self._write_audit(before)
            history, archived = (*before.history, entry), before.archived
        while len(history) >= 2 * PAGE:
            self._archive(Page(tier=tier, first=archived + 1, history=history[:PAGE]))
            history, archived = history[PAGE:], archived + PAGE
        return Alias(tier=tier, digest=entry.digest, version=entry.version, history=history, archived=archived)

    def _archive(self, page: Page) -> None:
        key = self.page_key(page.tier, page.first)
        try:
            self._store.create(key, page.document())
        except Conflict:
            if self._store.get(key).data != page.document():
                raise Tampered(f"holds other moves than the alias of tier {page.tier}", param=key) from None

    def _write_audit(self, alias: Alias) -> None:
        """Write the audit entry of the newest move, unless it is there."""
        audit = audit_of_newest(alias)
        with suppress(Conflict):
            self._store.create(self.audit_key(alias.tier, alias.moves, alias.history[-1]), audit.document())

    def _write_audit_now_or_later(self, alias: Alias) -> None:
        try:
            self._write_audit(alias)
        except FlexiError as error:  # the tier has moved: to report a failure would be a lie, and the next move makes up for it
            log.warning("tier %s was moved, but the audit entry could not be written yet: %s", alias.tier, error)

    def _read_or_none(self, tier: str) -> tuple[Alias | None, str]:
        try:
            return self.read(tier)
        except NotFound:
            return None, ""

    def _parse(self, tier: str, data: bytes) -> Alias:
        key = self.key(tier)
        alias = Alias.read(key, data)
        if alias.tier != tier:
            raise Tampered(f"is the alias of tier {alias.tier}", param=key)
        return alias


def audit_of_newest(alias: Alias) -> Audit:
    """The audit entry of the tier's newest move; the alias carries the move before it, if there was one."""
    return audit_of(alias.tier, alias.moves, alias.history[-1], alias.history[-2] if len(alias.history) > 1 else None)


def audit_of(tier: str, number: int, move: Move, before: Move | None) -> Audit:
    """The audit entry of a move: nothing that the history does not tell, in a document of its own that never changes."""
    return Audit(
        time=move.time,
        author=move.author,
        host=move.host,
        action=move.action,
        tier=tier,
        move=number,
        before=Target(digest=before.digest, version=before.version) if before else None,
        after=Target(digest=move.digest, version=move.version),
        reason=move.reason,
    )


def moved_meanwhile(tier: str, now: Alias | None) -> Conflict:
    """For who decided on what a tier meant before its newest move: it says what that was."""
    if now is None:
        return Conflict("was removed meanwhile: look again", param=f"tier {tier}")
    newest = now.history[-1]
    reason = f" ({newest.reason})" if newest.reason else ""
    said = f"{newest.action} to version {newest.version} by {newest.author} at {newest.time:%Y-%m-%d %H:%M:%S} UTC{reason}"
    return Conflict(f"was moved by somebody else meanwhile: {said}; look again", param=f"tier {tier}")
