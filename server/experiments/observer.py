"""Tells what became of a request: one event for each that an experiment's tier got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from server.experiments.events import Event, Outcome
from server.order import Picture
from server.plan import Plan


class Recorder(Protocol):
    """What this needs of the recorder."""

    def record(self, stream: str, event: Event) -> None:
        """Take an event."""


class Guards(Protocol):
    """What this needs of the guards."""

    def outcome(self, event: Outcome) -> None:
        """Weigh an enrolled request's outcome."""


class Observer:
    """Called at the end of each request, in the event loop; costs a few appends."""

    def __init__(self, recorder: Recorder, guards: Guards, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._recorder = recorder
        self._guards = guards
        self._clock = clock

    def ended(self, plan: Plan, outcome: str, seconds: float, pictures: Sequence[Picture]) -> None:
        """`outcome` is "ok" or the code of the error; without pictures nothing is known of what was executed."""
        assignment = plan.assignment
        if assignment is None:
            return
        counts, images = plan.entry.schedule.counts(), len(plan.orders)
        queued = max((picture.queue_seconds for picture in pictures), default=0.0)
        enrolled = assignment.enrolment == "enrolled"
        event = Outcome(
            time=self._clock(),
            request_id=plan.request_id,
            enrolment=assignment.enrolment,
            experiment=assignment.experiment.name,
            version=assignment.experiment.version,
            arm=assignment.arm if enrolled else None,
            unit=assignment.unit if enrolled else None,
            tier=plan.label,
            digest=plan.entry.digest,
            outcome=outcome,
            queue_seconds=queued,
            service_seconds=max(seconds - queued, 0.0),
            macs_planned=plan.macs,
            macs_executed=sum(picture.macs for picture in pictures),
            steps_planned=images * (counts["full"] + counts["partial"]),
            steps_executed=sum(picture.steps["full"] + picture.steps["partial"] for picture in pictures),
        )
        self._recorder.record(f"experiments/{assignment.experiment.name}/events", event)
        if enrolled:
            self._guards.outcome(event)
