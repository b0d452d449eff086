"""Everything about experiments in one server: assigned, recorded, guarded. Wired once, in `server.app`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from time import monotonic

from pydantic import JsonValue

from registry.errors import FlexiError
from registry.experiments.catalog import Experiments
from registry.experiments.declaration import OVER, Action, Experiment, Harm
from registry.writer import now
from server.experiments.active import ActiveExperiments
from server.experiments.events import FEEDBACK, FIDELITY, FidelityEvent, OutcomeEvent, RatingEvent, stream
from server.experiments.guard import Check, Guard, harms
from server.experiments.recorder import Recorder
from server.requests.context import RequestContext
from server.requests.plan import Plan
from server.requests.shadow import TeacherComparison
from server.telemetry import metrics

log = logging.getLogger(__name__)


class ExperimentRuntime:
    """Observes requests (`ended`), comparisons with the teacher (`compared`) and ratings; follows and guards what runs."""

    def __init__(
        self,
        active: ActiveExperiments,
        recorder: Recorder,
        open_experiments: Callable[[], Experiments],
        clock: Callable[[], datetime] = now,
        *,
        shadowed: bool = True,
    ) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away.

        `shadowed`: whether any image is held against the teacher's, so that guardrails of its fidelity can see something.
        """
        self.active = active
        self._recorder = recorder
        self._open = open_experiments
        self._clock = clock
        self._guards: dict[tuple[str, int], Guard] = {}
        self._tripped: deque[tuple[Experiment, Check]] = deque()  # not told to the registry yet
        self._shadowed = shadowed
        self._refused: set[tuple[str, int]] = set()  # of those that the registry did not take, said once

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
        self._recorder.record(FEEDBACK, RatingEvent(time=self._clock(), request_id=request_id, rating=rating))

    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """One event for each request of a tier that is under an experiment; costs a few appends in the event loop."""
        if plan.assignment is None:
            return
        event = outcome_of(context, plan, seconds, self._clock())
        self._recorder.record(stream(plan.assignment.experiment.name), event)
        self._guarded(plan, harms(event))

    def compared(self, plan: Plan, comparison: TeacherComparison) -> None:
        """An image of this plan was held against the teacher's."""
        event = FidelityEvent(
            time=self._clock(),
            request_id=plan.request_id,
            psnr=comparison.psnr,
            feature_distance=comparison.distance,
            rfid=comparison.rfid,
        )
        self._recorder.record(FIDELITY, event)
        self._guarded(plan, {"psnr": comparison.psnr})

    def refresh(self) -> None:
        """Follow the registry, and tell it what tripped or has come to its end. Blocks.

        What it does not take is told again the next time: a store that can only be read stops nobody from following it.
        """
        try:
            self.active.refresh()
            running = {(each.experiment.name, each.experiment.version): each.experiment for each in self.active.running()}
            self._guards = {key: self._guards.get(key) or self._guard(experiment) for key, experiment in running.items()}
            for _ in range(len(self._tripped)):
                experiment, check = self._tripped.popleft()
                if not self._act(experiment, "roll_back", sentence(check), dict(check.evidence)):
                    self._tripped.append((experiment, check))
            metrics.rollbacks_untold.set(len(self._tripped))
            for experiment in running.values():
                if self._clock() >= experiment.end:
                    self._act(experiment, "finish", "its end has come")
        except Exception:  # whatever happens here, it must go on
            log.exception("experiments could not be followed")

    def _guard(self, experiment: Experiment) -> Guard:
        if not self._shadowed and any(guardrail.metric == "psnr" for guardrail in experiment.guardrails):
            log.warning("the guardrail psnr of the experiment %s sees nothing here: FLEXI_SHADOW_SHARE is 0", experiment.name)
        return Guard(experiment)

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
        checks = guard.observe(monotonic(), assignment.arm, values) if guard else []
        for check in checks:
            metrics.guard_checks_total.labels(experiment.name, check.arm, check.guardrail.metric).inc()
        trip = next((check for check in checks if check.trips), None)
        if trip is None or not self.active.withdraw(experiment):
            return
        self._tripped.append((experiment, trip))
        metrics.rollbacks_untold.set(len(self._tripped))
        metrics.rollbacks_total.labels(experiment.name, trip.arm, trip.guardrail.metric).inc()
        log.error(
            "the experiment %s is rolled back: %s", experiment.name, sentence(trip), extra={"fields": dict(trip.evidence)}
        )

    def _act(self, experiment: Experiment, action: Action, reason: str, evidence: dict[str, JsonValue] | None = None) -> bool:
        """Whether nothing is left to do: it is done, or another one has ended this version. Else it must be tried again."""
        version = experiment.name, experiment.version
        try:
            self._open().act(experiment.name, action, reason, version=experiment.version, evidence=evidence)
        except FlexiError as error:
            if self._over(experiment):
                return True
            if version not in self._refused:  # said once
                log.error("the registry does not know yet: could not %s the experiment %s: %s", action, experiment.name, error)
            self._refused.add(version)
            return False
        if version in self._refused:
            log.warning("the registry knows now: %s of the experiment %s", action, experiment.name)
            self._refused.remove(version)
        return True

    def _over(self, experiment: Experiment) -> bool:
        try:
            state = self._open().state(experiment.name)
        except FlexiError:
            return False
        return state.version != experiment.version or state.status in OVER


def sentence(check: Check) -> str:
    """For people; the evidence has the figures."""
    rail = check.guardrail
    return (
        f"arm {check.arm}: {rail.metric} by {rail.compare} is {check.seen:.4g}, the limit is {rail.limit:g}, "
        f"{rail.consecutive} checks of {rail.minimum_sample} new requests in a row"
    )


def outcome_of(context: RequestContext, plan: Plan, seconds: float, time: datetime) -> OutcomeEvent:
    """The event of a request whose plan has an assignment. Without results nothing is known of what was executed."""
    assignment, counts, usage = plan.assignment, plan.entry.schedule.counts(), context.usage
    assert assignment is not None, "nothing to tell"
    return OutcomeEvent(
        time=time,
        request_id=plan.request_id,
        enrolment=assignment.enrolment,
        experiment=assignment.experiment.name,
        version=assignment.experiment.version,
        arm=assignment.arm,
        unit=assignment.unit,
        tier=plan.entry.label,
        digest=plan.entry.digest,
        fallback=assignment.fallback,
        outcome=context.code or "",
        queue_seconds=usage.queue_seconds,
        service_seconds=max(seconds - usage.queue_seconds, 0.0),
        macs_planned=plan.macs,
        macs_executed=usage.macs,
        unet_rows=sum(spec.unet_rows for spec in plan.specs),
        steps_planned=len(plan.specs) * (counts["full"] + counts["partial"]),
        steps_executed=usage.computed_steps,
    )
