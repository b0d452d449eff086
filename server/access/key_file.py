"""API keys at rest: the file that FLEXI_API_KEYS names.

A key is a random token of 256 bits, and the file holds its plain SHA-256. Slow and salted hashes protect secrets that
people choose and others can guess; 2²⁵⁶ tokens cannot be tried, so they would protect nothing here and cost every request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from registry.document import Document, Name, first_fault
from registry.errors import InvalidInput, StoreUnavailable
from registry.files import SECRET, locked, replace_file

Role = Literal["operator"]
OPERATOR: Role = "operator"  # may move tiers and end experiments, beside what every key may
EVERYBODY = "anonymous"  # the name of requests without a key: no key may have it


class KeyEntry(Document):
    """A key's name, the SHA-256 of the key, and what its holder may use; None is no limit."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    macs_per_minute: Annotated[int | None, Field(ge=1)] = None
    queue_seconds: Annotated[float | None, Field(gt=0)] = None
    role: Annotated[Role | None, Field(exclude_if=lambda role: role is None)] = None  # left out: older servers read the file
    note: str = ""

    @field_validator("name")
    @classmethod
    def _is_somebody(cls, name: str) -> str:
        if name == EVERYBODY:
            raise ValueError(f"{name!r} is the name of requests without a key")
        return name


class KeyFile(Document):
    """The whole file. No name and no hash is there twice."""

    keys: tuple[KeyEntry, ...] = ()

    @field_validator("keys")
    @classmethod
    def _are_distinct(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        for field in ("name", "sha256"):
            values = [getattr(entry, field) for entry in keys]
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"the {field} {min(twice)} is there twice")
        return keys


def sha256(token: str) -> str:
    """What is kept of a key: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> KeyFile:
    """The document in this file. Raises `InvalidInput` that names the file and the fault, never what stands there."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", param="FLEXI_API_KEYS") from error
    except ValidationError as error:
        raise InvalidInput(f"{path}: {first_fault(error)}", param="FLEXI_API_KEYS") from None


@contextmanager
def changing(path: Path) -> Iterator[list[KeyEntry]]:
    """The entries, to be changed in place; a missing file has none. Raises `InvalidInput` and `StoreUnavailable`.

    Only one process changes a folder's keys at a time, and the file is the old one or the new one, never half of it.
    """
    try:
        with locked(path.parent):
            entries = list(read(path).keys) if path.exists() else []
            yield entries
            replace_file(path, KeyFile(keys=tuple(entries)).model_dump_json(indent=1).encode() + b"\n", SECRET)
    except OSError as error:
        raise StoreUnavailable(f"cannot change {path}: {error.strerror}", param="file") from error
