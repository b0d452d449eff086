"""The audit trail: who moved which tier, candidate or experiment, when, from where, why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from registry.approvals.records import ApprovalPolicy, PromotionRequest, Voice
from registry.catalog import Catalog
from registry.experiments.candidates import CandidateCatalog, CandidateMove
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Transition
from registry.records import Audit
from registry.tiers import audit_of_newest


class AuditedMove(NamedTuple):
    """A move of a tier. Where its writer was cut off before the audit entry it is not `written`; the alias still tells it."""

    audit: Audit
    written: bool = True


def audited_moves(catalog: Catalog, tier: str | None = None, since: datetime | None = None) -> list[AuditedMove]:
    """The moves of one tier or of all, since a time or from the beginning; the oldest first.

    Only the entries of that period are read. Raises `NotFound` for a tier that does not exist.
    """
    start = f"{catalog.model}/audit/"
    after = f"{start}{since.astimezone(UTC):%Y%m%dT%H%M%S}" if since else ""
    keys = [key for key in catalog.store.list(start, after) if key.endswith(".json")]
    entries = [AuditedMove(Audit.read(key, catalog.store.get(key).data)) for key in keys]
    for name in [tier] if tier else catalog.tiers():
        alias = catalog.alias(name)
        if catalog.tier_aliases.audit_key(name, alias.moves, alias.history[-1]) not in keys:
            entries.append(AuditedMove(audit_of_newest(alias), written=False))
    wanted = [move for move in entries if tier in (None, move.audit.tier) and (since is None or move.audit.time >= since)]
    return sorted(wanted, key=lambda move: move.audit.time)


class ApprovalAct(NamedTuple):
    """Something that was said of a promotion that takes a second person, or of the policy that wants one."""

    what: str
    by: ApprovalPolicy | PromotionRequest | Voice

    @property
    def who(self) -> str:
        """The author, and the key where one signed."""
        key = f" (key {self.by.key})" if isinstance(self.by, Voice) and self.by.key else ""
        return f"{self.by.author}@{self.by.host}{key}"


def approval_acts(catalog: Catalog, since: datetime | None = None) -> list[ApprovalAct]:
    """All policies, requests and voices; the oldest first."""
    acts = list[ApprovalAct]()
    for policy, voices, _ in catalog.approvals.policies():
        guarded = ", ".join(policy.tiers) or "no tier"
        acts.append(ApprovalAct(f"policy {policy.number}: a second person for {guarded}", policy))
        acts += [ApprovalAct(f"speaks for policy {policy.number}", voice) for voice in voices]
    for request, voices in catalog.approvals.requests():
        wanted = f"{request.tier} to version {request.target.version}"
        acts.append(ApprovalAct(f"request {request.id}: {wanted}", request))
        acts += [ApprovalAct(f"speaks for request {request.id}: {wanted}", voice) for voice in voices]
    return sorted((act for act in acts if since is None or act.by.time >= since), key=lambda act: act.by.time)


class ExperimentTransition(NamedTuple):
    """An entry of an experiment's own history, which is never cut: what was done with it, and by whom."""

    experiment: str
    transition: Transition


def experiment_transitions(catalog: Catalog, since: datetime | None = None) -> list[ExperimentTransition]:
    """All that was done with experiments, rollbacks by servers and their evidence included; the oldest first."""
    states = (declared.state for declared in ExperimentCatalog(catalog.store, catalog.model).all())
    transitions = [ExperimentTransition(state.name, transition) for state in states for transition in state.history]
    wanted = [entry for entry in transitions if since is None or entry.transition.time >= since]
    return sorted(wanted, key=lambda entry: entry.transition.time)


def candidate_moves(catalog: Catalog, tier: str | None = None, since: datetime | None = None) -> list[CandidateMove]:
    """Which candidates were declared and withdrawn, of one tier or of all; the oldest first."""
    states = CandidateCatalog(catalog.store, catalog.model).all()
    moves = [move for state in states if tier in (None, state.tier) for move in state.history]
    return sorted((move for move in moves if since is None or move.time >= since), key=lambda move: move.time)
