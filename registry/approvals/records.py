"""What is kept of a second person's part: policies, requests to promote, and voices for either. None of them ever changes."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from registry.document import Name
from registry.records import Digest, Number, Record, Target, Text

RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class ApprovalPolicy(Record):
    """Which tiers take a second person to promote. `signed`: voices are signatures by keys, not names.

    A request is good for `hours`. `known` is what each of these tiers had meant when the policy was made: a rollback to those
    needs no request.
    """

    format: Literal[1] = 1
    number: Number
    tiers: tuple[Name, ...]
    signed: bool
    hours: Annotated[float, Field(gt=0, le=8760)]
    known: dict[Name, tuple[Digest, ...]]
    time: AwareDatetime
    author: Text
    host: Text
    reason: Text


class PromotionRequest(Record):
    """Somebody wants a tier to mean a schedule, and asks another one. It is stale once the tier has moved, or after `until`."""

    format: Literal[1] = 1
    model: Name
    tier: Name
    target: Target
    moves: Annotated[int, Field(ge=0)]
    time: AwareDatetime
    until: AwareDatetime
    author: Text
    host: Text
    reason: Text

    @property
    def id(self) -> str:
        """The beginning of its digest."""
        return hashlib.sha256(self.document()).hexdigest()[:12]


class Voice(Record):
    """Somebody speaks for a policy or a request: by name, or by a signature of the document's bytes."""

    author: Text
    host: Text
    time: AwareDatetime
    reason: Text
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")] | None = None

    @property
    def who(self) -> str:
        """What tells one person from another: the key, or the name."""
        return self.key or hashlib.sha256(self.author.encode()).hexdigest()[:16]
