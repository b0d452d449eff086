"""Verification: everything that a model has in a registry is read and held against everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from registry.catalog import Catalog
from registry.errors import FlexiError, NotFound, StoreUnavailable, Tampered
from registry.records import Alias, Audit, Move, Removal, Version
from registry.tiers import audit_of

RECORDS = ("aliases", "audit", "digests", "history", "removed", "schedules", "versions")
OF_EXPERIMENTS = (
    "approvals",
    "candidates",
    "experiments",
    "feedback",
    "fidelity",
    "holds",
)  # read as JSON here, and by `registry.experiments`
BESIDE = ("artifacts", "signatures")  # what lies beside a schedule, in a folder named by its digest


@dataclass(frozen=True)
class Finding:
    """What is wrong with a key, in words. A finding that is no `damage` mends itself, or does no harm."""

    key: str
    message: str
    damage: bool = True


class Verification:
    """One walk through a model's keys. Others may write meanwhile: what the listing lacks is looked for once more.

    `findings` holds everything that is wrong. Raises `StoreUnavailable`: what could not be read is not known to be damaged.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._tiers = catalog.tier_aliases
        self._versions: dict[int, Version] = {}
        self.findings: list[Finding] = []
        self.keys = frozenset(self._store.list(f"{catalog.model}/"))
        self._check_keys()
        self._check_schedules()
        self._check_versions()
        self._check_claims()
        told = [key for tier in self._names("aliases") for key in self._check_tier(tier)]
        self._check_audit(frozenset(told))

    @property
    def damage(self) -> list[Finding]:
        """The findings that somebody should act on."""
        return [finding for finding in self.findings if finding.damage]

    def _check_keys(self) -> None:
        """Note strangers and leftovers, and parse what is not looked at more closely below."""
        for key in sorted(self.keys):
            _, folder, *rest = key.split("/")
            if folder in BESIDE and len(rest) > 1:
                if not self._exists(self._catalog.schedule_key(rest[0])):
                    self._note(key, "is left of a schedule that is gone: gc removes it")
            elif folder in OF_EXPERIMENTS and rest:
                if key.endswith(".json"):
                    with self._reading(key):
                        self._check_json(key)
            elif folder not in RECORDS or not key.endswith(".json"):
                self._note(key, "is nothing that a registry keeps")

    def _check_json(self, key: str) -> None:
        try:
            json.loads(self._store.get(key).data)
        except ValueError as error:
            raise Tampered(f"is not valid JSON: {error}", param=key) from error

    def _check_schedules(self) -> None:
        for digest in self._names("schedules"):
            key = self._catalog.schedule_key(digest)
            with self._reading(key):
                try:
                    self._catalog.schedule(digest)
                except NotFound:  # listed a moment ago
                    if not self._exists(self._catalog.removal_key(digest)):
                        raise
        for digest in self._names("removed"):
            key = self._catalog.removal_key(digest)
            with self._reading(key):
                Removal.read(key, self._store.get(key).data)

    def _check_versions(self) -> None:
        numbers = [int(name) for name in self._names("versions") if name.isdecimal()]
        for number in range(1, max(numbers, default=0) + 1):
            key = self._catalog.version_log.key(number)
            with self._reading(key):
                version = self._versions[number] = self._catalog.version(number)
                places = self._catalog.schedule_key(version.digest), self._catalog.removal_key(version.digest)
                if not any(self._exists(place) for place in places):
                    self._damaged(key, f"names a schedule that is missing: {version.digest}")

    def _check_claims(self) -> None:
        newest = max(self._versions, default=0)
        for digest in self._names("digests"):
            key = self._catalog.version_log.claim_key(digest)
            with self._reading(key):
                claim, _ = self._catalog.version_log.claim(digest)
                number = claim.number if claim else 0
                version = self._versions.get(number)
                if number > newest + 1 and not self._exists(self._catalog.version_log.key(number - 1)):
                    self._damaged(key, f"claims version {number}, but {newest} is the newest")
                elif version is None or version.digest != digest:
                    self._note(key, "a publication was cut off or runs now: to publish the schedule again completes it")
        for number, version in self._versions.items():
            if not self._exists(self._catalog.version_log.claim_key(version.digest)):
                self._damaged(self._catalog.version_log.key(number), "has no claim: its digest could get a second number")

    def _check_tier(self, tier: str) -> list[str]:
        """Hold a tier's moves against schedules, versions and audit entries; returns the keys of those entries."""
        key, audited = f"{self._catalog.model}/aliases/{tier}.json", []
        with self._reading(key):
            alias = self._catalog.alias(tier)
            if not self._exists(self._catalog.schedule_key(alias.digest)):
                self._damaged(key, f"points at a schedule that is missing: {alias.digest}")
            moves = [*self._tiers.backwards(alias)][::-1]
            for number, (before, move) in enumerate(pairwise([None, *moves]), 1):
                assert move is not None
                self._check_move(key, number, move)
                audited.append(self._tiers.audit_key(tier, number, move))
                with self._reading(audited[-1]):
                    self._check_entry(alias, audited[-1], audit_of(tier, number, move, before))
        return audited

    def _check_move(self, key: str, number: int, move: Move) -> None:
        with self._reading(key):
            if self._catalog.version(move.version).digest != move.digest:
                self._damaged(key, f"move {number} gives version {move.version} another digest than its record")

    def _check_entry(self, alias: Alias, key: str, expected: Audit) -> None:
        try:
            if Audit.read(key, self._store.get(key).data) != expected:
                self._damaged(key, "does not tell the move as the tier's history does")
        except NotFound:
            text = f"the audit entry of move {expected.move} of tier {expected.tier} is missing"
            if expected.move == alias.moves:
                self._note(key, f"{text}: its writer was cut off, and the next move writes it")
            else:
                self._damaged(key, text)

    def _check_audit(self, told: frozenset[str]) -> None:
        """Read the audit entries that no tier's history led to."""
        for name in self._names("audit"):
            key = f"{self._catalog.model}/audit/{name}.json"
            if key not in told:
                with self._reading(key):
                    audit = Audit.read(key, self._store.get(key).data)
                    if audit.move <= self._catalog.alias(audit.tier).moves:
                        self._damaged(key, "tells a move that the tier's history does not")

    def _names(self, folder: str) -> list[str]:
        start = f"{self._catalog.model}/{folder}/"
        keys = sorted(key for key in self.keys if key.startswith(start) and key.endswith(".json"))
        return [key.removeprefix(start).removesuffix(".json") for key in keys]

    def _exists(self, key: str) -> bool:
        if key in self.keys:
            return True
        try:
            self._store.get(key)
        except NotFound:
            return False
        return True

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            raise
        except FlexiError as error:
            self._damaged(key, error.message)

    def _damaged(self, key: str, message: str) -> None:
        self.findings.append(Finding(key, message))

    def _note(self, key: str, message: str) -> None:
        self.findings.append(Finding(key, message, damage=False))
