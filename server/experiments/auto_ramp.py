"""`ramp --auto`: one look at an experiment, and at most one step of it. From cron, a CI job, several machines at once.

What was decided on is compared with what is there when it is done (`transitions` of the experiment, `moves` of the tier), so of
several who look at once one acts and the others say so. The promotion is written into the finish before it is made: whoever
finds it unmade makes it up, unless the tier was moved since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from registry import second_person
from registry.catalog import Catalog
from registry.errors import Conflict
from registry.experiments.catalog import DeclaredExperiment, ExperimentCatalog
from registry.experiments.declaration import ExperimentState
from server.experiments.analysis.automatic import PROMOTE, RampDecision, RampOutcome, at_rest, decide, evidence_of
from server.experiments.analysis.report import Report

CODES: dict[RampOutcome, int] = {"advanced": 0, "finished": 0, "waiting": 10, "paused": 11, "rolled_back": 12}
MAX_REASON = 2000  # characters that a history takes


@dataclass(frozen=True)
class AutomaticStep:
    """What came of one look: the experiment as it is now, and what was said of its tier, where that was asked for."""

    decision: RampDecision
    state: ExperimentState
    promotion: str = ""

    @property
    def exit_code(self) -> int:
        """0 for a step or a good end; others for those that wait, need a person, or did harm."""
        return CODES[self.decision.outcome]

    @property
    def line(self) -> str:
        """All of it in one line."""
        said = f"{self.state.name} version {self.state.version} {self.decision.outcome}: {self.decision.reason.rstrip('.')}"
        return f"{said}; {self.promotion}" if self.promotion else said

    def as_json(self, dry_run: bool) -> dict[str, Any]:
        """For scripts. `status` and `stage` are those after the step; in a dry run those of now."""
        state, decision = self.state, self.decision
        return {
            "experiment": state.name, "version": state.version, "outcome": decision.outcome, "reason": decision.reason,
            "status": state.status, "stage": state.stage, "arm": decision.arm, "promotion": self.promotion or None,
            "dry_run": dry_run, "exit_code": self.exit_code,
        }  # fmt: skip


def step(
    catalog: Catalog,
    name: str,
    report: Callable[[DeclaredExperiment], Report],
    now: datetime,
    *,
    promote: bool = False,
    dry_run: bool = False,
) -> AutomaticStep:
    """Look once, and do what follows. `report` is only made of an experiment that runs.

    With `promote`, the arm that ships becomes what the tier means. Raises what the registry raises, but for `Conflict` with
    somebody who was first.
    """
    experiments = ExperimentCatalog(catalog.store, catalog.model, catalog.writer)
    declared = experiments.declared(name)
    if declared.state.status != "running":
        decision = at_rest(declared.state)
        return AutomaticStep(decision, declared.state, "" if dry_run else _promote(catalog, declared, promote))
    page = report(declared)
    decision = decide(declared, page, now)
    evidence = evidence_of(page, decision)
    if promote and (arm := decision.arm):
        moves = _moves_of_control(catalog, declared)
        if moves is None:
            moved = f"tier {declared.experiment.tier} does not mean control any more: promote {arm} by hand, or declare anew"
            decision = replace(decision, outcome="paused", reason=moved, action="pause", arm=None)
        else:
            evidence |= {PROMOTE: {"arm": arm, "digest": _digest(declared, arm), "moves": moves}}
    if dry_run or decision.action is None:
        return AutomaticStep(decision, declared.state)
    seen = declared.state
    try:
        state = experiments.act(
            name,
            decision.action,
            f"automatic ramp: {decision.reason}"[:MAX_REASON],
            version=seen.version,
            stage=seen.stage,
            transitions=len(seen.history),
            evidence=evidence,
        )
    except Conflict as error:
        declared = experiments.declared(name)
        other = RampDecision("waiting", error.text) if declared.state.status == "running" else at_rest(declared.state)
        return AutomaticStep(other, declared.state)
    return AutomaticStep(decision, state, _promote(catalog, DeclaredExperiment(declared.experiment, state), promote))


def _promote(catalog: Catalog, declared: DeclaredExperiment, wanted: bool) -> str:
    """Make up the promotion that a finish speaks of, unless the tier was moved since. What is to be said of it."""
    newest = declared.state.history[-1]
    evidence = newest.evidence or {}
    if not wanted or declared.state.status != "finished" or "arm" not in evidence:
        return ""
    planned = evidence.get(PROMOTE)
    if not isinstance(planned, dict):
        return f"it was finished without --promote: promote {evidence['arm']} by hand"
    tier, digest, moves = declared.experiment.tier, str(planned["digest"]), int(str(planned["moves"]))
    alias = catalog.alias(tier)
    if alias.moves != moves and alias.digest == digest:
        return f"tier {tier} means {planned['arm']}: {_meaning(catalog, tier)}"
    if alias.moves != moves:
        return f"tier {tier} was moved since this was decided: {_meaning(catalog, tier)}"
    reason = f"experiment {declared.state.name} version {declared.state.version}: {newest.reason}"[:MAX_REASON]
    try:
        if catalog.approvals.guards(tier):
            asked = second_person.request(catalog, tier, digest, reason, moves=moves)
            return f"tier {tier} takes a second person: request {asked.id}; python -m registry approve {asked.id}"
        catalog.promote(tier, digest, reason, moves=moves)
    except Conflict:
        return f"tier {tier} was moved by somebody else meanwhile: {_meaning(catalog, tier)}"
    return f"tier {tier} means {planned['arm']} now: {_meaning(catalog, tier)}"


def _meaning(catalog: Catalog, tier: str) -> str:
    alias = catalog.alias(tier)
    return f"version {alias.version} ({alias.digest[:8]})"


def _moves_of_control(catalog: Catalog, declared: DeclaredExperiment) -> int | None:
    """How often the tier was moved; None where it does not mean control, against which all was measured."""
    experiment = declared.experiment
    alias = catalog.alias(experiment.tier) if experiment.tier in catalog.tiers() else None
    return alias.moves if alias and alias.digest == _digest(declared, experiment.control) else None


def _digest(declared: DeclaredExperiment, arm: str) -> str:
    return next(one.digest for one in declared.experiment.arms if one.name == arm)
