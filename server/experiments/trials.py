"""Everything about experiments in one server: assigned, recorded, guarded. Wired once, in `server.house`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic

from pydantic import JsonValue

from registry.errors import FlexiError, StoreUnavailable
from registry.experiment import Action, Experiment, Harm
from registry.experiments import Experiments
from server import metrics
from server.experiments.archive import FEEDBACK, FIDELITY, stream
from server.experiments.events import Fidelity, Outcome, Rating
from server.experiments.guard import Guard, Trip, harms
from server.experiments.live import Live
from server.experiments.recorder import Recorder
from server.order import Picture
from server.plan import Plan
from server.shadow import Compared

log = logging.getLogger(__name__)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


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
        self._guards: dict[tuple[str, int], Guard] = {}
        self._tripped: deque[tuple[Experiment, Trip]] = deque()  # not told to the registry yet

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
        self._recorder.record(FEEDBACK, Rating(time=self._clock(), request_id=request_id, rating=rating))

    def ended(self, plan: Plan, outcome: str, seconds: float, pictures: Mapping[int, Picture]) -> None:
        """One event for each request of a tier that is under an experiment; costs a few appends in the event loop."""
        if plan.assignment is None:
            return
        event = outcome_of(plan, outcome, seconds, pictures, self._clock())
        self._recorder.record(stream(plan.assignment.experiment.name), event)
        self._guarded(plan, harms(event))

    def compared(self, plan: Plan, compared: Compared) -> None:
        """An image of this plan was held against the teacher's."""
        event = Fidelity(time=self._clock(), request_id=plan.request_id, psnr=compared.psnr, feature_distance=compared.distance)
        self._recorder.record(FIDELITY, event)
        self._guarded(plan, {"psnr": compared.psnr})

    def refresh(self) -> None:
        """Follow the registry, and tell it what tripped or has come to its end. Blocks."""
        try:
            while self._tripped:
                experiment, trip = self._tripped[0]
                self._act(experiment, "roll_back", sentence(trip), dict(trip.evidence))
                self._tripped.popleft()
            self.live.refresh()
            running = {(each.experiment.name, each.experiment.version): each.experiment for each in self.live.running()}
            self._guards = {key: self._guards.get(key) or Guard(experiment) for key, experiment in running.items()}
            for experiment in running.values():
                if self._clock() >= experiment.end:
                    self._act(experiment, "finish", "its end has come")
        except StoreUnavailable:
            return  # the watch tells it
        except Exception:  # whatever happens here, it must go on
            log.exception("experiments could not be followed")

    def _guarded(self, plan: Plan, values: dict[Harm, float]) -> None:
        """Hold what an enrolled request showed against the guardrails.

        A trip ends the experiment here at once, and everywhere by the registry as soon as it can be told; of several servers
        that see the harm, the first wins.
        """
        assignment = plan.assignment
        if assignment is None or assignment.arm is None or assignment.fallback or not values:
            return  # what a fallback shows is not the arm's doing
        experiment = assignment.experiment
        guard = self._guards.get((experiment.name, experiment.version))
        trip = guard.observe(monotonic(), assignment.arm, values) if guard else None
        if trip is None or not self.live.withdraw(experiment):
            return
        self._tripped.append((experiment, trip))
        metrics.rollbacks_total.labels(experiment.name, trip.arm, trip.guardrail.metric).inc()
        log.error(
            "the experiment %s is rolled back: %s", experiment.name, sentence(trip), extra={"fields": dict(trip.evidence)}
        )

    def _act(self, experiment: Experiment, action: Action, reason: str, evidence: dict[str, JsonValue] | None = None) -> None:
        """Raises `StoreUnavailable`: then it is tried again. Whatever else stands against it is told and done with."""
        try:
            self._open().act(experiment.name, action, reason, version=experiment.version, evidence=evidence)
        except StoreUnavailable:
            raise
        except FlexiError as error:
            log.warning("could not %s the experiment %s: %s", action.replace("_", " "), experiment.name, error)


def sentence(trip: Trip) -> str:
    """For people; the evidence has the figures."""
    rail = trip.guardrail
    return (
        f"arm {trip.arm}: {rail.metric} by {rail.compare} is {trip.seen:.4g}, the limit is {rail.limit:g}, "
        f"{rail.consecutive} checks of {rail.minimum_sample} new requests in a row"
    )


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
        fallback=assignment.fallback,
        outcome=outcome,
        queue_seconds=queued,
        service_seconds=max(seconds - queued, 0.0),
        macs_planned=plan.macs,
        macs_executed=sum(picture.macs for picture in pictures.values()),
        steps_planned=len(plan.orders) * (counts["full"] + counts["partial"]),
        steps_executed=sum(picture.steps["full"] + picture.steps["partial"] for picture in pictures.values()),
    )
