"""What one request says of its arm, metric by metric: the guardrails and the report read it the same way."""

from __future__ import annotations

from registry.experiments.declaration import Metric
from server.experiments.events import OutcomeEvent

ABANDONED = frozenset({"client_gone", "cancelled"})
"""Outcomes of requests that their client gave up: perhaps for its own reasons, perhaps because the arm took too long."""
NOT_THE_ARMS_DOING = frozenset({"overloaded", "quota_exceeded", "not_ready", "stopping", "marking_failed"})
"""Outcomes that are no success, and no fault of the arm's but the whole server's."""


def metric_values(outcome: OutcomeEvent) -> dict[Metric, float]:
    """What one request says of its arm. Only a finished one has times and MACs worth comparing, and only where all its images
    were made for it; one that got nothing but repeats says nothing.
    """
    if outcome.repeats and not outcome.macs_planned:
        return {}
    if outcome.outcome in NOT_THE_ARMS_DOING:
        return {}
    if outcome.outcome in ABANDONED:
        return {"abandoned": 1.0}
    if outcome.outcome != "ok":
        return {"errors": 1.0, "abandoned": 0.0}
    if outcome.repeats:
        return {"errors": 0.0, "abandoned": 0.0}
    return {
        "errors": 0.0,
        "abandoned": 0.0,
        "queue_seconds": outcome.queue_seconds,
        "service_seconds": outcome.service_seconds,
        "macs": outcome.macs_executed / outcome.unet_rows,  # how many images, and whether they guide, is the client's choice
    }
