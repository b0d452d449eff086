"""What a request's tier means now, by name or by its deadline."""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.notice import Notice
from registry.tiers import REFERENCE
from server.api import AUTO, GenerateRequest
from server.requests import warnings
from server.tiers.active import ActiveSchedule, ActiveSchedules


class TierChoice:
    """Before any experiment: who is enrolled must not depend on the arm."""

    def __init__(self, schedules: ActiveSchedules, default_tier: str) -> None:
        self._schedules, self._default = schedules, default_tier

    def of(self, request: GenerateRequest, predicted: Callable[[ActiveSchedule], float]) -> tuple[ActiveSchedule, list[Notice]]:
        """The schedule, and unmet wishes; predicted: seconds until a schedule's images would be done.

        `auto` with a deadline means the dearest tier below the teacher that should keep it, or the cheapest when none
        should; without a deadline, the default tier. Raises `NotFound` for a tier that there is not.
        """
        if request.tier not in (None, AUTO):
            return self._schedules.tier(request.tier), []
        if request.tier is None or request.deadline_ms is None:
            default = self._schedules.tier(self._schedules.default(self._default))
            return default, [] if default.tier == self._default else [warnings.default_tier_not_served(self._default)]
        offers = [entry for entry in self._schedules.tiers() if entry.tier != REFERENCE]  # the cheapest first
        if not offers:
            return self._schedules.tier(REFERENCE), [warnings.no_tier_served()]
        for offer in reversed(offers):
            if predicted(offer) <= seconds_of(request):
                return offer, []
        return offers[0], [warnings.deadline_at_risk(offers[0].label, request.deadline_ms)]


def seconds_of(request: GenerateRequest) -> float:
    """How many seconds after its arrival a request must be done."""
    return math.inf if request.deadline_ms is None else request.deadline_ms / 1000
