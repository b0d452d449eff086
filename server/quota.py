"""stub until merged"""

from __future__ import annotations

from registry.errors import Overloaded
from server.keys import Key


class QuotaExceeded(Overloaded):
    """Stub."""


class Quotas:
    """Stub."""

    def take(self, key: Key, macs: int) -> None:
        """Stub."""

    def give_back(self, key: Key, macs: int) -> None:
        """Stub."""
