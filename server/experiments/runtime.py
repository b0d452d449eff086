"""Everything about experiments in one server: assigned, recorded, guarded. Wired once, in `server.app`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from typing_extensions import override

from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Harm
from registry.writer import now
from server.experiments.active import ActiveExperiments
from server.experiments.end_reporter import EndReporter
from server.experiments.events import FEEDBACK, FIDELITY, FidelityEvent, OutcomeEvent, RatingEvent, stream
from server.experiments.guardrails import guardrail_values
from server.experiments.monitors import GuardrailMonitors
from server.experiments.recorder import Recorder
from server.requests.context import RequestContext
from server.requests.fidelity import TeacherComparison
from server.requests.generation import RequestObserver
from server.requests.plan import Plan
from server.requests.shadow import ComparisonObserver
from server.telemetry import metrics
from server.tiers.looks import keep_looking

log = logging.getLogger(__name__)


class ExperimentRuntime(RequestObserver, ComparisonObserver):
    """Follows the registry's experiments, records what their requests showed, and ends one whose arm does harm.

    It observes requests, comparisons with the teacher, and ratings.
    """

    def __init__(
        self,
        active: ActiveExperiments,
        recorder: Recorder,
        open_experiments: Callable[[], ExperimentCatalog],
        clock: Callable[[], datetime] = now,
        *,
        shadowed: bool = True,
    ) -> None:
        """`open_experiments` gives the same ones each time, or raises while the store is away.

        `shadowed`: whether any image is held against the teacher's, so that guardrails of its fidelity can see something.
        """
        self.active = active
        self._recorder = recorder
        self._clock = clock
        self._monitors = GuardrailMonitors(shadowed=shadowed)
        self._reporter = EndReporter(open_experiments)

    async def follow(self, seconds: float) -> None:
        """Look at the registry and at the guardrails for ever, with pauses of about so many seconds."""
        await keep_looking(self.refresh, seconds)

    def close(self) -> None:
        """Write down what is left. Blocks."""
        self._recorder.close()

    def rate(self, request_id: str, rating: float) -> None:
        """What a client thought of a finished request, from 0 (bad) to 1 (good)."""
        self._recorder.record(FEEDBACK, RatingEvent(time=self._clock(), request_id=request_id, rating=rating))

    @override
    def ended(self, context: RequestContext, plan: Plan, seconds: float) -> None:
        """One event for each request of a tier that is under an experiment; costs a few appends in the event loop."""
        if plan.assignment is None:
            return
        event = outcome_of(context, plan, seconds, self._clock())
        self._recorder.record(stream(plan.assignment.experiment.name), event)
        self._hold_to_guardrails(plan, guardrail_values(event))

    @override
    def compared(self, plan: Plan, comparison: TeacherComparison) -> None:
        """One event for each image that was compared; its PSNR counts for the guardrails too."""
        event = FidelityEvent(
            time=self._clock(),
            request_id=plan.request_id,
            psnr=comparison.psnr,
            feature_distance=comparison.distance,
            rfid=comparison.rfid,
        )
        self._recorder.record(FIDELITY, event)
        self._hold_to_guardrails(plan, {"psnr": comparison.psnr})

    def refresh(self) -> None:
        """Follow the registry, and tell it what was rolled back here or has come to its end. Blocks.

        What it does not take is reported again the next time: a store that can only be read stops nobody from following it.
        """
        try:
            self.active.refresh()
            running = [active.experiment for active in self.active.running()]
            self._monitors.follow(running)
            self._reporter.report_rollbacks()
            for experiment in running:
                if self._clock() >= experiment.end:
                    self._reporter.finish(experiment)
        except Exception:  # whatever happens here, it must go on
            log.exception("experiments could not be followed")

    def _hold_to_guardrails(self, plan: Plan, values: dict[Harm, float]) -> None:
        """Hold what an enrolled request showed against the guardrails.

        A trip ends the experiment here at once, and elsewhere as soon as the registry takes the report; of several servers
        that see the harm, the first one's counts.
        """
        assignment = plan.assignment
        if assignment is None or assignment.arm is None or assignment.fallback or not values:
            return  # what a fallback shows is not the arm's doing
        experiment = assignment.experiment
        trip = self._monitors.observe(experiment, assignment.arm, values)
        if trip is None or not self.active.withdraw(experiment):
            return
        self._reporter.roll_back(experiment, trip)
        metrics.rollbacks_total.labels(experiment.name, trip.arm, trip.guardrail.metric).inc()
        log.error("the experiment %s is rolled back: %s", experiment.name, trip.sentence, extra={"fields": dict(trip.evidence)})


def outcome_of(context: RequestContext, plan: Plan, seconds: float, time: datetime) -> OutcomeEvent:
    """The event of a request whose plan has an assignment. Without results nothing is known of what was executed."""
    assignment, usage = plan.assignment, context.usage
    assert assignment is not None, "only a request under an experiment has an event"
    return OutcomeEvent(
        time=time,
        request_id=plan.request_id,
        enrolment=assignment.enrolment,
        model=plan.entry.schedule.model.name,
        experiment=assignment.experiment.name,
        version=assignment.experiment.version,
        arm=assignment.arm,
        unit=assignment.unit,
        tier=plan.entry.label,
        digest=plan.entry.digest,
        fallback=assignment.fallback,
        covariates=assignment.covariates,
        size=str(plan.size),
        loras=tuple(map(str, plan.adapters.uses)),
        repeats=len(plan.repeats),
        outcome=context.code or "",
        queue_seconds=usage.queue_seconds,
        service_seconds=max(seconds - usage.queue_seconds, 0.0),
        macs_planned=plan.macs,
        macs_executed=usage.macs,
        unet_rows=sum(spec.unet_rows for spec in plan.specs),
        steps_planned=sum(len(plan.specs[image].program.steps) for image in plan.to_make),
        steps_executed=usage.computed_steps,
    )
