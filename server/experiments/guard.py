"""Placeholder until the real one is merged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from registry.experiment import Experiment
from server.experiments.events import Outcome


@dataclass(frozen=True)
class Trip:
    """Stub."""

    arm: str
    metric: str

    def evidence(self) -> dict[str, JsonValue]:
        """Stub."""
        return {}

    def sentence(self) -> str:
        """Stub."""
        return ""


class Guard:
    """Stub."""

    def __init__(self, experiment: Experiment) -> None: ...

    def outcome(self, event: Outcome) -> None:
        """Stub."""

    def fidelity(self, arm: str, psnr: float) -> None:
        """Stub."""

    def check(self, now: datetime) -> Trip | None:
        """Stub."""
        return None
