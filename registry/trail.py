"""The audit trail: who moved which tier or experiment, when, from where, why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from registry.catalog import Catalog
from registry.experiments.catalog import Experiments
from registry.experiments.declaration import Transition
from registry.records import Audit
from registry.tiers import audit_of


class Entry(NamedTuple):
    """A move. It is not `written` where its writer was cut off before the audit entry: the alias tells it."""

    audit: Audit
    written: bool = True


def trail(catalog: Catalog, tier: str | None = None, since: datetime | None = None) -> list[Entry]:
    """The moves of one tier or all, since a time or ever, oldest first. Reads the entries of that period only."""
    start = f"{catalog.model}/audit/"
    after = f"{start}{since.astimezone(UTC):%Y%m%dT%H%M%S}" if since else ""
    keys = [key for key in catalog.store.list(start, after) if key.endswith(".json")]
    entries = [Entry(Audit.read(key, catalog.store.get(key).data)) for key in keys]
    for name in [tier] if tier else catalog.tiers():
        alias = catalog.alias(name)
        move, before = alias.history[-1], alias.history[-2:-1]
        if move.action and catalog.pointers.audit_key(name, alias.moves, move) not in keys:
            audit = audit_of(name, alias.moves, move, move.action, before[0] if before else None)
            entries.append(Entry(audit, written=False))
    wanted = [each for each in entries if tier in (None, each.audit.tier) and (since is None or each.audit.time >= since)]
    return sorted(wanted, key=lambda each: each.audit.time)


class Act(NamedTuple):
    """What was done with an experiment: its state's own history tells it, which is never cut."""

    experiment: str
    transition: Transition


def acts(catalog: Catalog, since: datetime | None = None) -> list[Act]:
    """All that was done with experiments, roll-backs by servers and their evidence included, oldest first."""
    states = (declared.state for declared in Experiments(catalog.store, catalog.model).every())
    found = [Act(state.name, each) for state in states for each in state.history if since is None or each.time >= since]
    return sorted(found, key=lambda each: each.transition.time)
