"""Garbage collection: schedules that nothing names any more are removed, with their artifacts and signatures.

Why it is safe while others publish and promote: it removes the document, then looks once more at everything that may name it,
and puts back what is named by now. Whoever makes something name a schedule puts the schedule in its place afterwards
(`Catalog.publish`, `promote`, `rollback`). If they named it before that second look, the look sees it; if later, their own
write comes after the removal. So a document is lost only if both are killed in between, for a schedule that nobody has used
for the whole period; `verify` tells, and publishing the file again mends it. Version records stay: numbers are never reused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from registry.catalog import Catalog
from registry.errors import Conflict, NotFound
from registry.records import Alias, Removal
from registry.second_person import open_requests

BATCH = 100  # documents removed between two looks; they are held in memory until the second
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Garbage:
    """A schedule that nothing names, its versions, and the keys of what lies beside it."""

    digest: str
    versions: tuple[int, ...]
    beside: tuple[str, ...]


class GarbageCollector:
    """Finds and removes what no alias, experiment, candidate or history of the last `days` names."""

    def __init__(self, catalog: Catalog, days: float) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._since = catalog.writer.clock() - timedelta(days=days)

    def find(self) -> list[Garbage]:
        """What could be removed now, and what an earlier collection that was cut off has left. Changes nothing."""
        model, named = self._catalog.model, self._named()
        versions, beside = defaultdict(list), defaultdict(list)
        for version in self._catalog.versions():
            versions[version.digest].append(version.number)
        for folder in ("artifacts", "signatures"):
            for key in self._store.list(f"{model}/{folder}/"):
                beside[key.split("/")[2]].append(key)
        kept = {key.rpartition("/")[2].removesuffix(".json") for key in self._store.list(f"{model}/schedules/")}
        unnamed = sorted((kept | beside.keys()) - named)
        return [
            Garbage(digest, tuple(versions[digest]), tuple(beside[digest]))
            for digest in unnamed
            if digest in versions or self._is_old_stray(digest)
        ]

    def remove(self, garbage: Sequence[Garbage]) -> list[Garbage]:
        """Remove these schedules, but for those that somebody names by now; returns what was removed."""
        batches = (garbage[start : start + BATCH] for start in range(0, len(garbage), BATCH))
        return [schedule for batch in batches for schedule in self._remove(batch)]

    def _remove(self, batch: Sequence[Garbage]) -> list[Garbage]:
        named = self._named()
        documents = {schedule: self._take(schedule.digest) for schedule in batch if schedule.digest not in named}
        named = self._named()
        for schedule, document in documents.items():
            if schedule.digest in named and document:
                self._put_back(schedule.digest, document)
        return [schedule for schedule in documents if schedule.digest not in named and self._clear(schedule)]

    def _clear(self, schedule: Garbage) -> bool:
        """Remove what lies beside a removed document. False where it was published again: then all of it is as it was.

        Who publishes, signs and attaches again finds what was there before, and leaves it.
        """
        taken: dict[str, bytes] = {}
        for key in () if self._is_back(schedule.digest) else schedule.beside:
            with suppress(NotFound):
                taken[key] = self._store.get(key).data
            self._store.delete(key)
        if not self._is_back(schedule.digest):
            return True
        for key, data in taken.items():
            with suppress(Conflict):
                self._store.create(key, data)
        return False

    def _take(self, digest: str) -> bytes | None:
        """Remove a document and return it; None if it is gone already. A record stays: who misses the document is told why."""
        writer, key = self._catalog.writer, self._catalog.schedule_key(digest)
        try:
            document = self._store.get(key).data
        except NotFound:
            return None
        removal = Removal(digest=digest, time=writer.clock(), author=writer.author, host=writer.host)
        with suppress(Conflict):  # it was removed, published again, and is removed again
            self._store.create(self._catalog.removal_key(digest), removal.document())
        self._store.delete(key)
        return document

    def _is_back(self, digest: str) -> bool:
        """Whether somebody published it again after it was removed."""
        try:
            self._store.get(self._catalog.schedule_key(digest))
        except NotFound:
            return False
        return True

    def _put_back(self, digest: str, document: bytes) -> None:
        with suppress(Conflict):
            self._store.create(self._catalog.schedule_key(digest), document)

    def _named(self) -> set[str]:
        """The digests that something names now. What is damaged stops the collection: it may name anything."""
        named = {version.digest for version in self._catalog.versions() if version.time >= self._since}
        for alias in self._catalog.aliases():
            named.update(self._meant(alias))
        for folder in ("experiments", "candidates"):
            for key in self._store.list(f"{self._catalog.model}/{folder}/"):
                if key.endswith(".json"):
                    named.update(match.decode() for match in _DIGEST.findall(self._store.get(key).data))
        named.update(waiting.request.target.digest for waiting in open_requests(self._catalog))
        return named

    def _meant(self, alias: Alias) -> Iterator[str]:
        """What a tier meant at any time of the period, and what a rollback would lead to, however long ago."""
        target_seen = False
        replaced: datetime | None = None  # when the tier was moved on from there
        for move in self._catalog.tier_aliases.backwards(alias):
            if replaced is None or replaced >= self._since:
                yield move.digest
            elif target_seen:
                return
            elif move.digest != alias.digest:
                yield move.digest
            target_seen |= move.digest != alias.digest
            replaced = move.time

    def _is_old_stray(self, digest: str) -> bool:
        """Whether it never got a version because its publication was cut off, and long ago: it may be running now."""
        claim, _ = self._catalog.version_log.claim(digest)
        return claim is not None and claim.time < self._since
