"""stub until merged"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """Who asks."""

    name: str
    macs_per_minute: int | None = None
    queue_seconds: float | None = None


ANONYMOUS = Key("anonymous")
