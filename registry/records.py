"""What the catalog writes beside the schedules: versions, aliases, the audit trail. Frozen documents, kept as JSON."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from registry.document import Document, Name, canonical, first_fault, misfit
from registry.errors import InvalidInput, Tampered
from registry.schedule import Schedule

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=2000)]
Action = Literal["promote", "rollback"]


class Record(Document):
    """A document that the catalog itself writes."""

    @classmethod
    def read(cls, key: str, data: bytes) -> Self:
        """Read what is stored under `key`, or raise `Tampered`: only this program writes these."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise Tampered(f"is not a valid {cls.__name__}: {first_fault(error)}", param=key) from error

    def document(self) -> bytes:
        """The canonical JSON, as it is stored."""
        return canonical(self.model_dump(mode="json"))


class Version(Record):
    """One act of publishing: numbers count 1, 2, 3, … without gaps."""

    number: Number
    digest: Digest
    time: AwareDatetime
    author: Text
    note: Text


class Claim(Record):
    """The number that a digest has, or is about to get: a version record with another digest there makes it void."""

    digest: Digest
    number: Number
    time: AwareDatetime


class Target(Record):
    """Where an alias points."""

    digest: Digest
    version: Number


class Move(Target):
    """One entry of a tier's history: from `time` on, it meant this schedule."""

    time: AwareDatetime
    author: Text
    reason: Text
    action: Action
    host: Text


class Alias(Record):
    """What a tier means now, and its newest moves (the newest last); the first `archived` moves are in pages."""

    tier: Name
    digest: Digest
    version: Number
    history: tuple[Move, ...] = Field(min_length=1)
    archived: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_its_newest_move(self) -> Self:
        newest = self.history[-1]
        if (self.digest, self.version) != (newest.digest, newest.version):
            raise misfit("is not where the newest history entry points", "digest")
        return self

    @property
    def moves(self) -> int:
        """How often the tier was moved: its newest move has this number, counted from 1."""
        return self.archived + len(self.history)


class Page(Record):
    """Moves of a tier that its alias no longer carries; `first` is the number of the first one."""

    tier: Name
    first: Number
    history: tuple[Move, ...] = Field(min_length=1)


class Audit(Record):
    """Who moved which tier from which host, with the state before (none at first) and after.

    `move` is the number of the move in its tier's history, counted from 1.
    """

    time: AwareDatetime
    author: Text
    action: Action
    tier: Name
    before: Target | None
    after: Target
    reason: Text
    host: Text
    move: Number


class Removal(Record):
    """What garbage collection leaves where a schedule was: that it is gone is no damage."""

    digest: Digest
    time: AwareDatetime
    author: Text
    host: Text


class Resolved(NamedTuple):
    """A schedule whose digest was verified. A digest alone tells no version, a version no tier."""

    schedule: Schedule
    version: int | None
    tier: str | None


def checked(adapter: TypeAdapter[str], value: str, field: str) -> str:
    """The value, or `InvalidInput` that names the field."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidInput(f"{error.errors()[0]['msg']}, got {value[:80]!r}", param=field) from error
