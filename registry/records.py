"""What the catalog writes beside the schedules: versions, aliases, the audit trail. Frozen documents, kept as JSON."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from registry.errors import Tampered
from registry.schedule import Document, Name, Schedule, canonical, first_fault

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=2000)]


class Record(Document):
    """A document of the catalog's own."""

    @classmethod
    def read(cls, key: str, data: bytes) -> Self:
        """Read what is stored under `key`, or raise `Tampered`: only this program writes these."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            message, _ = first_fault(error)
            raise Tampered(f"{key} is not a valid {cls.__name__}: {message}", param=key) from error

    def document(self) -> bytes:
        """Canonical JSON, as stored."""
        return canonical(self.model_dump(mode="json"))


class Version(Record):
    """One act of publishing: numbers count 1, 2, 3, … without gaps."""

    number: Number
    digest: Digest
    time: AwareDatetime
    author: Text
    note: Text


class Promotion(Record):
    """One entry of an alias's history: from `time` on, the tier meant this schedule."""

    digest: Digest
    version: Number
    time: AwareDatetime
    author: Text
    reason: Text


class Alias(Record):
    """What a tier means now, and what it meant before (newest last)."""

    tier: Name
    digest: Digest
    version: Number
    history: tuple[Promotion, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_its_newest_entry(self) -> Self:
        newest = self.history[-1]
        if (self.digest, self.version) != (newest.digest, newest.version):
            raise ValueError("the alias does not point where its newest history entry does")
        return self


class Target(Record):
    """Where an alias points."""

    digest: Digest
    version: Number


class Audit(Record):
    """Who did what to which tier, with the state before (none at first) and after."""

    time: AwareDatetime
    author: Text
    action: Literal["promote", "rollback"]
    tier: Name
    before: Target | None
    after: Target
    reason: Text


class Resolved(NamedTuple):
    """A schedule whose digest was verified. A digest alone tells no version, a version no tier."""

    schedule: Schedule
    version: int | None
    tier: str | None
