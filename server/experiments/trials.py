"""Everything about experiments in one server: assigned, recorded, guarded. Wired once, in `server.house`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import JsonValue

from registry.errors import FlexiError
from registry.experiment import Action, Experiment
from registry.experiments import Experiments
from server import metrics
from server.experiments.events import Fidelity, Outcome, Rating
from server.experiments.guard import Guard, Trip
from server.experiments.live import Live
from server.experiments.recorder import Recorder
from server.order import Picture
from server.plan import Plan
from server.shadow import Compared

log = logging.getLogger(__name__)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass
class _Guarded:
    """An experiment's guard while it runs."""

    experiment: Experiment
    guard: Guard


class Trials:
    """Observes requests (`ended`), comparisons with the teacher (`compared`) and ratings; follows and guards what runs."""

    def __init__(
        self,
        live: Live,
        recorder: Recorder,
        open_experiments: Callable[[], Experiments],
        clock: Callable[[], datetime] = now,
    ) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away."""
        self.live = live
        self._recorder = recorder
        self._open = open_experiments
        self._clock = clock
        self._guards: dict[tuple[str, int], _Guarded] = {}

    async def follow(self, seconds: float) -> None:
        """Look at the registry and at the guardrails for ever, with pauses of so many seconds."""
        while True:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(seconds)

    def close(self) -> None:
        """Write down what is left. Blocks."""
        self._recorder.close()

    def rate(self, request_id: str, rating: float) -> None:
        """What a client thought of a finished request, from 0 (bad) to 1 (good)."""
        self._recorder.record("feedback", Rating(time=self._clock(), request_id=request_id, rating=rating))

    def ended(self, plan: Plan, outcome: str, seconds: float, pictures: Mapping[int, Picture]) -> None:
        """One event for each request of a tier that is under an experiment; costs a few appends in the event loop."""
        if plan.assignment is None:
            return
        event = outcome_of(plan, outcome, seconds, pictures, self._clock())
        self._recorder.record(f"experiments/{event.experiment}/events", event)
        if guarded := self._guarded(plan):
            guarded.guard.outcome(event)

    def compared(self, plan: Plan, compared: Compared) -> None:
        """An image of this plan was held against the teacher's."""
        event = Fidelity(time=self._clock(), request_id=plan.request_id, psnr=compared.psnr, feature_distance=compared.distance)
        self._recorder.record("fidelity", event)
        guarded = self._guarded(plan)
        if guarded and plan.assignment and plan.assignment.arm:
            guarded.guard.fidelity(plan.assignment.arm, compared.psnr, event.time)

    def refresh(self) -> None:
        """Follow the registry, then let every guard look. Blocks."""
        try:
            self.live.refresh()
            running = {(each.experiment.name, each.experiment.version): each.experiment for each in self.live.running()}
            self._guards = {
                key: self._guards.get(key) or _Guarded(experiment, Guard(experiment)) for key, experiment in running.items()
            }
            for guarded in self._guards.values():
                if trip := guarded.guard.check(self._clock()):
                    self._roll_back(guarded.experiment, trip)
                elif self._clock() >= guarded.experiment.end:
                    self._act(guarded.experiment, "finish", "its end has come")
        except Exception:  # whatever happens here, it must go on
            log.exception("experiments could not be followed")

    def _roll_back(self, experiment: Experiment, trip: Trip) -> None:
        """First here, at once; then everywhere, by the registry. Of several servers that see the harm, the first wins."""
        self.live.withdraw(experiment)
        metrics.rollbacks_total.labels(experiment.name, trip.arm, trip.metric).inc()
        evidence = trip.evidence()
        log.error("the experiment %s is rolled back: %s", experiment.name, trip.sentence(), extra={"fields": evidence})
        self._act(experiment, "roll_back", trip.sentence(), evidence)

    def _act(self, experiment: Experiment, action: Action, reason: str, evidence: dict[str, JsonValue] | None = None) -> None:
        try:
            self._open().act(experiment.name, action, reason, version=experiment.version, evidence=evidence)
        except FlexiError as error:
            log.warning("could not %s the experiment %s: %s", action.replace("_", " "), experiment.name, error)

    def _guarded(self, plan: Plan) -> _Guarded | None:
        if plan.assignment is None or plan.assignment.arm is None:
            return None
        experiment = plan.assignment.experiment
        return self._guards.get((experiment.name, experiment.version))


def outcome_of(plan: Plan, outcome: str, seconds: float, pictures: Mapping[int, Picture], time: datetime) -> Outcome:
    """The event of a request whose plan has an assignment. Without pictures nothing is known of what was executed."""
    assignment, counts = plan.assignment, plan.entry.schedule.counts()
    assert assignment is not None, "nothing to tell"
    queued = max((picture.queue_seconds for picture in pictures.values()), default=0.0)
    return Outcome(
        time=time,
        request_id=plan.request_id,
        enrolment=assignment.enrolment,
        experiment=assignment.experiment.name,
        version=assignment.experiment.version,
        arm=assignment.arm,
        unit=assignment.unit,
        tier=plan.label,
        digest=plan.entry.digest,
        outcome=outcome,
        queue_seconds=queued,
        service_seconds=max(seconds - queued, 0.0),
        macs_planned=plan.macs,
        macs_executed=sum(picture.macs for picture in pictures.values()),
        steps_planned=len(plan.orders) * (counts["full"] + counts["partial"]),
        steps_executed=sum(picture.steps["full"] + picture.steps["partial"] for picture in pictures.values()),
    )
