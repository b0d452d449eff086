"""Webhooks of jobs: who asked for a job is told how it ended."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from server.jobs.record import JobEnd
from server.telemetry import metrics
from server.webhooks.delivery import Delivery, event_body

log = logging.getLogger(__name__)


class WebhookSender:
    """Delivers each event at least once: a receiver knows a repeated one by its `webhook-id`, which is the job's id.

    An event says which job ended and how. What came of it is for whoever has the API key.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    async def deliver(self, url: str, end: JobEnd) -> bool:
        """Call until a receiver says 2xx; False when that has been tried often enough."""
        fault = await self._delivery.deliver(url, end.job.id, event_of(end))
        if fault:
            not_delivered(end, fault)
        else:
            metrics.webhooks_total.labels("ok").inc()
        return not fault


def not_delivered(end: JobEnd, why: str) -> None:
    """Count and log that nobody was told of this end."""
    metrics.webhooks_total.labels("failed").inc()
    log.warning("a webhook was not delivered", extra={"fields": {"job": end.job.id, "key": end.job.owner.name, "why": why}})


def event_of(end: JobEnd) -> bytes:
    """The body of the call that says how a job ended."""
    job = end.job
    data = {"id": job.id, "object": "job", "state": end.state, "created_at": int(job.created), "ended_at": int(end.ended)}
    data["error"] = end.error and end.error.model_dump()
    return event_body(f"job.{end.state}", datetime.fromtimestamp(end.ended, UTC), data)
