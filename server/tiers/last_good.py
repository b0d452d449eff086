"""The last good set of tiers on disk, so that a server starts while the registry is away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from registry.document import Name
from registry.errors import FlexiError, NotFound, StoreUnavailable, Tampered
from registry.files import replace_file
from registry.records import Digest, Number, Record
from registry.schedule import Schedule
from registry.signing import Signature, TrustedKeys


class KeptTier(Record):
    """What a tier meant: the document as the registry stores it, and the signature that let it pass, if one had to."""

    tier: Name
    version: Number
    digest: Digest
    schedule: str
    signature: Signature | None

    def verified(self, trusted: TrustedKeys | None) -> Schedule:
        """The schedule. Raises `Tampered` if it is not the one of this digest, `Untrusted` if no trusted key signed it."""
        what = f"the kept schedule {self.digest}"
        schedule = Schedule.parse(self.schedule)
        if schedule.digest != self.digest:
            raise Tampered(f"{what} was changed: its digest is {schedule.digest}", param="digest")
        if trusted:
            trusted.check(what, self.schedule.encode(), self._signature_by)
        return schedule

    def _signature_by(self, key: str) -> bytes:
        if self.signature is None or self.signature.key != key:
            raise NotFound(f"no signature by {key} was kept", param="signature")
        return self.signature.document()


class KeptSet(Record):
    """All tiers that were in force at `time`, of one model in one registry."""

    format: Literal[1] = 1
    registry: str
    model: Name
    time: AwareDatetime
    tiers: tuple[KeptTier, ...]


def name_of(registry: str, model: str) -> str:
    """What is kept on disk for a model in a registry is kept under this name: it must not come into another registry."""
    return f"{model}-{hashlib.sha256(registry.encode()).hexdigest()[:12]}"


def kept_models(folder: Path, registry: str, is_called: Callable[[str], bool]) -> list[str]:
    """The names under which a set was kept for this registry, the newest first, that has tiers of weights which are called so.

    What is damaged is left out: who reads the set says so.
    """
    found = []
    for path in folder.glob(f"{name_of(registry, '*')}.json"):
        with suppress(OSError, FlexiError):
            kept = KeptSet.read(str(path), path.read_bytes())
            fingerprints = {Schedule.parse(tier.schedule).model.fingerprint for tier in kept.tiers}
            if kept.registry == registry and any(map(is_called, fingerprints)):
                found.append(kept)
    return [kept.model for kept in sorted(found, key=lambda kept: kept.time, reverse=True)]


class LastGood:
    """One file for each registry and model, replaced as a whole: a reader finds the old set or the new one."""

    def __init__(self, folder: Path, registry: str, model: str, trusted: TrustedKeys | None = None) -> None:
        self.path = folder / f"{name_of(registry, model)}.json"
        self.trusted = trusted
        self._registry, self._model = registry, model
        self._kept: tuple[KeptTier, ...] | None = None

    def keep(self, tiers: Sequence[KeptTier]) -> None:
        """Write the set, unless it is the one written last. Raises `StoreUnavailable` where the disk does not take it."""
        if self._kept == tuple(tiers):
            return
        kept = KeptSet(registry=self._registry, model=self._model, time=datetime.now(UTC), tiers=tuple(tiers))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, kept.document())
        except OSError as error:
            raise StoreUnavailable(f"the last good set cannot be kept in {self.path}: {error.strerror}") from error
        self._kept = kept.tiers

    def read(self) -> KeptSet:
        """The set kept last, its tiers not verified yet. Raises `NotFound`, and `Tampered` for a file that is damaged."""
        try:
            kept = KeptSet.read(str(self.path), self.path.read_bytes())
        except OSError as error:
            raise NotFound(f"no last good set in {self.path}: {error.strerror}") from error
        if (kept.registry, kept.model) != (self._registry, self._model):
            raise Tampered(f"{self.path} was kept for {kept.model} of {kept.registry}")
        return kept
