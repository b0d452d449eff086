"""What operators are shown and what they do. All of it asks or changes the registry, as the command lines do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, TypeVar

from registry import second_person
from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput
from registry.experiments.catalog import DeclaredExperiment, ExperimentCatalog
from registry.experiments.declaration import BY_RATIO, ExperimentState
from registry.records import Alias
from registry.site.views import ShownDifference, ShownExperiments, ShownFront, ShownMoves, ShownSchedule
from registry.tiers import moved_meanwhile
from registry.writer import Writer
from server.api import UnservedTier
from server.config import Settings
from server.experiments.analysis.archive import stored_events
from server.experiments.analysis.course import course
from server.experiments.analysis.gate import missing
from server.experiments.analysis.report import as_json, report
from server.experiments.analysis.shadow_report import as_json as shadow_report_as_json
from server.experiments.analysis.shadow_report import shadow_report
from server.experiments.analysis.summary import summarise
from server.experiments.events import Event
from server.models.model_registry import ModelRegistry
from server.models.served_model import ServedModel
from server.operator.questions import Questions
from server.operator.second_person import RequestView, SecondPersonView, request_view
from server.operator.views import CourseView, IntervalView, OperatorTiers, ReportView, ServerWork, ShadowView, TierInForce
from server.operator.work import work
from server.telemetry import metrics
from server.telemetry.served import serving

T = TypeVar("T")
Ending = Literal["stop", "kill"]

log = logging.getLogger(__name__)

REGISTRY_SECONDS = 2.0  # how old what is shown of the registry may be
REPORT_SECONDS = 60.0  # of an experiment's report, which reads all of its events
WORK_SECONDS = 1.0
MAX_EVENTS = 50_000  # that a report is made of here: more would keep the device's thread waiting for this process
READ = 10  # times as many may be read for it: of what was learned later most is of other experiments
MARKS = 6  # of an experiment's course


class Operator:
    """Reads are kept for a moment, few at work at once (`Questions`). Actions are the registry's, by the actor's name."""

    def __init__(self, models: Sequence[ServedModel], settings: Settings, questions: Questions | None = None) -> None:
        self._models, self._settings = models, settings
        self._questions = questions or Questions()
        self._reports = Questions()  # which take long: they keep nothing else waiting

    async def work(self) -> ServerWork:
        """What the server does now."""
        return await self._questions.kept("work", WORK_SECONDS, lambda: work(self._models, self._settings.workers))

    async def front(self, served: ServedModel, last: int) -> ShownFront:
        """The newest versions of its schedules."""
        return await self._shown(served, ("front", last), lambda registry: registry.reader.front(last))

    async def tiers(self, served: ServedModel) -> OperatorTiers:
        """What tiers mean in the registry, and here."""
        shown = await self._shown(served, "tiers", lambda registry: registry.reader.tiers())
        waiting = await self._shown(served, "requests", _waiting)
        entries = [entry for entry in served.schedules.tiers() if entry.tier]
        return OperatorTiers(
            **dict(shown),
            default=served.default_tier,
            second_person=waiting.tiers,
            requests=waiting.requests,
            in_force=[TierInForce(tier=entry.label, digest=entry.digest, version=entry.version) for entry in entries],
            not_served=_unserved(served.schedules.refused),
            not_compared=_unserved(served.candidates.refused),
        )

    async def moves(self, served: ServedModel, tier: str, last: int) -> ShownMoves:
        """A tier's history."""
        return await self._shown(served, ("moves", tier, last), lambda registry: registry.reader.moves(tier, last))

    async def schedule(self, served: ServedModel, ref: str) -> ShownSchedule:
        """One schedule, with all that is known of it."""
        return await self._shown(served, ("schedule", ref), lambda registry: registry.reader.schedule(ref))

    async def difference(self, served: ServedModel, a: str, b: str) -> ShownDifference:
        """What changes from one schedule to another."""
        return await self._shown(served, ("difference", a, b), lambda registry: registry.reader.difference(a, b))

    async def experiments(self, served: ServedModel) -> ShownExperiments:
        """All of them, with their states."""
        return await self._shown(served, "experiments", lambda registry: registry.reader.experiments())

    async def report(self, served: ServedModel, name: str) -> ReportView:
        """What an experiment's arms did. Raises `InvalidInput` where it has too many events to be analysed here."""
        question = self._asking(served, lambda registry: _report(registry, name))
        return await self._reports.kept((served.name, "report", name), REPORT_SECONDS, question)

    async def shadow(self, served: ServedModel, tier: str) -> ShadowView:
        """What a tier's candidate made. Raises `NotFound` where it had none, and what `report` raises."""
        question = self._asking(served, lambda registry: _shadow(registry, tier))
        return await self._reports.kept((served.name, "shadow", tier), REPORT_SECONDS, question)

    async def promote(
        self, served: ServedModel, actor: str, tier: str, ref: str, reason: str, moves: int
    ) -> Alias | RequestView:
        """Let a tier mean another schedule, or ask for the second person whom that takes.

        Raises `Conflict` if it was moved since it had so many moves.
        """

        def act(registry: ModelRegistry) -> Alias | RequestView:
            catalog = _catalog(registry, actor)
            if catalog.approvals.guards(tier):
                made = second_person.request(catalog, tier, ref, reason, moves=moves)
                waiting = next((one for one in second_person.open_requests(catalog) if one.request.id == made.id), None)
                if waiting is None:
                    raise moved_meanwhile(tier, catalog.alias(tier))
                return request_view(waiting)
            return catalog.promote(tier, ref, reason, moves=moves)

        return await self._done(served, actor, "promote", act)

    async def approve(self, served: ServedModel, actor: str, request: str, reason: str) -> Alias | None:
        """Be the second person of a request; None where it takes another voice still. Raises `Conflict` for who made it."""
        return await self._done(
            served, actor, "approve", lambda registry: second_person.approve(_catalog(registry, actor), request, reason)
        )

    async def rollback(self, served: ServedModel, actor: str, tier: str, reason: str, moves: int) -> Alias:
        """Let a tier mean what it meant before. Raises `Conflict` if it was moved since it had so many moves."""
        return await self._done(
            served, actor, "rollback", lambda registry: _catalog(registry, actor).rollback(tier, reason, moves=moves)
        )

    async def ramp(
        self, served: ServedModel, actor: str, name: str, reason: str, version: int, transitions: int, force: bool
    ) -> ExperimentState:
        """Raise an experiment's share to its next stage. Raises `InvalidInput` if its gate is not passed, without `force`."""

        def act(registry: ModelRegistry) -> ExperimentState:
            experiments = _experiments(registry, actor)
            declared = experiments.declared(name)
            stage = declared.state.stage
            if not force and len(declared.state.history) == transitions and (waits_for := _gate(registry, declared)):
                raise InvalidInput(f"the gate is not passed: {waits_for}; force goes on all the same", param="ramp")
            return experiments.act(name, "ramp", reason, version=version, stage=stage, transitions=transitions)

        return await self._done(served, actor, "ramp", act)

    async def end(
        self, served: ServedModel, actor: str, name: str, ending: Ending, reason: str, version: int, transitions: int | None
    ) -> ExperimentState:
        """Stop or kill a version of an experiment: the tier's own schedule serves everybody."""
        return await self._done(
            served,
            actor,
            ending,
            lambda registry: _experiments(registry, actor).act(name, ending, reason, version=version, transitions=transitions),
        )

    def close(self) -> None:
        """Ask nothing any more."""
        self._questions.close()
        self._reports.close()

    async def _shown(self, served: ServedModel, what: object, read: Callable[[ModelRegistry], T]) -> T:
        return await self._questions.kept((served.name, what), REGISTRY_SECONDS, self._asking(served, read))

    async def _done(self, served: ServedModel, actor: str, action: str, act: Callable[[ModelRegistry], T]) -> T:
        """What is changed is logged and counted, and so is what is refused."""
        outcome = "failed"
        try:
            done = await self._questions.fresh(self._asking(served, act))
            outcome = "ok"
        except FlexiError as error:
            outcome = error.code
            raise
        finally:
            with serving(served.counted_as):
                metrics.operator_actions_total.labels(action, outcome).inc()
            log.info("operator", extra={"fields": {"key": actor, "action": action, "outcome": outcome}})
            self._questions.forget()
            self._reports.forget()
        return done

    @staticmethod
    def _asking(served: ServedModel, question: Callable[[ModelRegistry], T]) -> Callable[[], T]:
        """For a thread. Raises `NotReady` at once where the model is not understood yet."""
        registry = served.registry
        return lambda: question(registry)


def _catalog(registry: ModelRegistry, actor: str) -> Catalog:
    """As this server's own: what its trusted keys did not sign makes no tier."""
    store, tiers = registry.catalog.store, registry.approved_tiers
    return Catalog(store, registry.model, author=actor, trusted=registry.trusted, approved_tiers=tiers)


def _waiting(registry: ModelRegistry) -> SecondPersonView:
    catalog = registry.catalog
    policy = catalog.approvals.policy()
    tiers = sorted({*registry.approved_tiers, *(policy.tiers if policy else ())})
    return SecondPersonView(tiers=tiers, requests=[request_view(one) for one in second_person.open_requests(catalog)])


def _experiments(registry: ModelRegistry, actor: str) -> ExperimentCatalog:
    return ExperimentCatalog(registry.catalog.store, registry.model, Writer.here(actor))


def _events(registry: ModelRegistry, declared: DeclaredExperiment, damaged: list[str]) -> list[Event]:
    store, state, version = registry.catalog.store, declared.state, declared.experiment.version
    found = stored_events(store, registry.model, state, version, damaged, most=MAX_EVENTS * READ)
    events = list(islice(found, MAX_EVENTS + 1))
    if len(events) > MAX_EVENTS:
        command = f"python -m server.experiments report {declared.state.name}"
        message = f"has more than {MAX_EVENTS:,} events, too many to be analysed beside requests: {command} reads them all"
        raise InvalidInput(message, param=declared.state.name)
    return events


def _shadow(registry: ModelRegistry, tier: str) -> ShadowView:
    now = datetime.now(UTC)
    page = shadow_report(Catalog(registry.catalog.store, registry.model), registry.candidates.state(tier), now, MAX_EVENTS)
    return ShadowView(report=shadow_report_as_json(page), time=now)


def _unserved(refused: Mapping[str, str]) -> list[UnservedTier]:
    return [UnservedTier(tier=tier, reason=why) for tier, why in sorted(refused.items())]


def _gate(registry: ModelRegistry, declared: DeclaredExperiment) -> str | None:
    """What the stage waits for, or what speaks against a larger share."""
    now, events = datetime.now(UTC), _events(registry, declared, [])
    return missing(declared, report(declared.experiment, summarise(declared.experiment, events), now), now)


def _report(registry: ModelRegistry, name: str) -> ReportView:
    damaged, now = list[str](), datetime.now(UTC)
    declared = registry.experiments.declared(name)
    experiment, state = declared
    events = _events(registry, declared, damaged)
    page = report(experiment, summarise(experiment, events), now)
    points = [
        CourseView(
            time=point.time,
            arm=point.arm,
            units=point.units,
            effect=IntervalView(**point.effect._asdict()) if point.effect else None,
        )
        for point in course(experiment, events, MARKS)
    ]
    runs = state.status == "running" and state.stage + 1 < len(experiment.ramp)
    return ReportView(
        report=as_json(page),
        course=points,
        by_ratio=experiment.primary.metric in BY_RATIO,
        gate=missing(declared, page, now) if runs else None,
        events=len(events),
        damaged=damaged,
        time=now,
    )
