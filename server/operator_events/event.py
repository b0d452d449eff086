"""An event for operators, and the audit entry that it comes from, by which all servers call it the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from pydantic import JsonValue

from registry.experiments.declaration import ExperimentState, Transition
from registry.records import Alias, Move
from server.webhooks.delivery import event_body

EventType = Literal["tier.promoted", "tier.rolled_back", "tier.stale", "experiment.rolled_back", "registry.stale"]
KEPT = timedelta(days=7)  # how long it is kept who told an event
DAY = timedelta(days=1)


@dataclass(frozen=True)
class OperatorEvent:
    """Something that an operator wants to know. `source` is what happened, in the words of the audit."""

    type: EventType
    source: str
    time: datetime
    data: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same on every server that sees it: from its type and the audit entry."""
        return "evt_" + hashlib.sha256(f"{self.type} {self.source}".encode()).hexdigest()[:32]

    def claim(self, now: datetime) -> str:
        """The name under which a server that tells it now says so. It begins with the time at which it is swept.

        That is a week after the event, and later by the whole days that have passed since: an old move may be refused only now.
        So servers that tell it on the same of its days make the same claim, and `is_claim` knows those of other days.
        """
        passed = max(now - self.time, timedelta(0)) // DAY * DAY
        return f"{int((self.time + passed + KEPT).timestamp()):08x}-{self.id}.json"

    def is_claim(self, name: str) -> bool:
        """Whether this is the name under which a server, at whatever time, said that it tells it."""
        return name.endswith(f"-{self.id}.json")

    @property
    def body(self) -> bytes:
        """What a receiver reads."""
        return event_body(self.type, self.time, self.data)


def of_move(model: str, alias: Alias, number: int, move: Move) -> OperatorEvent:
    """A move of a tier; `number` counts its moves from 1."""
    return OperatorEvent(
        "tier.promoted" if move.action == "promote" else "tier.rolled_back",
        _move_source(model, alias.tier, number, move),
        move.time,
        {
            "model": model, "tier": alias.tier, "move": number, "version": move.version, "digest": move.digest,
            "author": move.author, "host": move.host, "reason": move.reason,
        },
    )  # fmt: skip


def of_refusal(model: str, alias: Alias, reason: str) -> OperatorEvent:
    """A tier whose newest move is refused by servers: it goes on meaning what it meant before, or is not served."""
    move = alias.history[-1]
    data: dict[str, JsonValue] = {
        "model": model, "tier": alias.tier, "move": alias.moves, "version": move.version, "digest": move.digest,
        "reason": reason,
    }  # fmt: skip
    return OperatorEvent("tier.stale", _move_source(model, alias.tier, alias.moves, move), move.time, data)


def of_rollback(model: str, state: ExperimentState, number: int, entry: Transition) -> OperatorEvent:
    """An experiment that was rolled back, by a server's guardrail or an automatic ramp; `number` counts its transitions."""
    source = f"{model}/experiments/{state.name}/{entry.version}/{number}/{entry.time.isoformat()}"
    data: dict[str, JsonValue] = {
        "model": model, "experiment": state.name, "version": entry.version, "author": entry.author, "host": entry.host,
        "reason": entry.reason, "evidence": entry.evidence,
    }  # fmt: skip
    return OperatorEvent("experiment.rolled_back", source, entry.time, data)


def of_absence(registry: str, last: datetime, now: datetime) -> OperatorEvent:
    """A registry that could not be read since a time. Servers notice it within a pause of each other: its hour names it."""
    data: dict[str, JsonValue] = {"registry": registry, "last_read": last.isoformat(timespec="seconds")}
    return OperatorEvent("registry.stale", f"{registry} {last:%Y-%m-%dT%H}", now, data)


def _move_source(model: str, tier: str, number: int, move: Move) -> str:
    return f"{model}/audit/{move.time.isoformat()}-{tier}-{number:06d}"
