"""An alias carries a bounded number of moves, the rest is found; every move gets its audit entry, whoever dies."""

from __future__ import annotations

from itertools import count

import pytest
from dying_store import Clock, DyingStore, Killed
from schedule_strategies import schedule

from registry.audit_trail import audited_moves
from registry.catalog import Catalog
from registry.errors import NotFound, Tampered
from registry.records import Audit
from registry.tiers import PAGE
from registry.verify import Verification

MOVES = 4 * PAGE + 3


@pytest.fixture
def store() -> DyingStore:
    return DyingStore()


@pytest.fixture
def catalog(store: DyingStore) -> Catalog:
    catalog = Catalog(store, "emoji64", clock=Clock(), author="ada")
    for published in (schedule(), schedule(5), schedule(3, 6)):
        catalog.publish(published)
    return catalog


def audit_of_tier(catalog: Catalog) -> list[Audit]:
    return [Audit.read(key, catalog.store.get(key).data) for key in catalog.store.list("emoji64/audit/")]


def test_the_alias_stays_small_and_history_whole(catalog: Catalog, store: DyingStore) -> None:
    for turn in range(MOVES):
        catalog.promote("fast", 1 + turn % 2, f"turn {turn}")
        alias = catalog.alias("fast")
        assert len(alias.history) < 2 * PAGE
        assert alias.moves == turn + 1
    assert [move.reason for move in catalog.history("fast")] == [f"turn {turn}" for turn in range(MOVES)]
    assert [move.reason for move in catalog.history("fast", last=2)] == [f"turn {turn}" for turn in (MOVES - 2, MOVES - 1)]
    assert [entry.move for entry in audit_of_tier(catalog)] == list(range(1, MOVES + 1))
    assert Verification(catalog).findings == []


def test_rollback_finds_a_schedule_that_only_a_page_knows(catalog: Catalog) -> None:
    catalog.promote("fast", 3)
    catalog.promote("fast", 1)
    one_more = [catalog.publish(schedule(cost={"macs": i, "rows": 1, "relative": 0.1})).number for i in range(2)]
    for turn in range(MOVES):  # other versions of the same schedule
        catalog.promote("fast", one_more[turn % 2])
    assert {move.digest for move in catalog.alias("fast").history} == {schedule().digest}
    assert catalog.rollback("fast").version == 3


def test_wherever_a_mover_dies_the_next_one_completes_it(catalog: Catalog, store: DyingStore) -> None:
    """At the move that fills a page, which writes most."""
    for turn in range(2 * PAGE - 1):
        catalog.promote("fast", 1 + turn % 2, f"turn {turn}")
    before = dict(store._objects)
    for writes in count():
        store._objects, store.writes = dict(before), writes
        try:
            Catalog(store, "emoji64", clock=catalog.writer.clock).promote("fast", 3, "dying")
        except Killed:
            pass
        else:
            break
        store.writes = None
        moved = catalog.alias("fast").version == 3
        assert Verification(catalog).damage == []
        assert len(catalog.history("fast")) == 2 * PAGE - 1 + moved
        assert [entry.audit.move for entry in audited_moves(catalog)] == list(range(1, 2 * PAGE + moved))
        catalog.promote("fast", 2, "next")
        assert Verification(catalog).findings == []
        assert [entry.move for entry in audit_of_tier(catalog)] == list(range(1, 2 * PAGE + 1 + moved))
    assert writes >= 4  # audit of the move before, page, alias, audit


def test_the_trail_tells_a_move_whose_writer_died_before_the_audit_entry(catalog: Catalog, store: DyingStore) -> None:
    catalog.promote("fast", 1)
    store.writes = 2  # the audit entry of the move before, which is there, and the alias
    with pytest.raises(Killed):
        catalog.promote("fast", 2, "dying")
    store.writes = None
    assert [(entry.audit.reason, entry.written) for entry in audited_moves(catalog)] == [("", True), ("dying", False)]
    (note,) = Verification(catalog).findings
    assert not note.damage
    assert "the next move writes it" in note.message
    catalog.promote("fast", 3)
    assert [entry.written for entry in audited_moves(catalog)] == [True, True, True]


def test_the_trail_is_filtered(catalog: Catalog) -> None:
    catalog.promote("fast", 1)
    since = catalog.writer.clock()
    catalog.promote("best", 2)
    catalog.promote("fast", 3)
    assert [entry.audit.tier for entry in audited_moves(catalog)] == ["fast", "best", "fast"]
    assert [entry.audit.after.version for entry in audited_moves(catalog, since=since)] == [2, 3]
    assert [entry.audit.after.version for entry in audited_moves(catalog, "fast")] == [1, 3]
    assert [entry.audit.after.version for entry in audited_moves(catalog, "fast", since)] == [3]
    with pytest.raises(NotFound, match="tier slow: is not in"):
        audited_moves(catalog, "slow")
    assert {entry.audit.host for entry in audited_moves(catalog)} == {catalog.writer.host}


def test_a_page_that_was_changed_or_lost_is_noticed(catalog: Catalog, store: DyingStore) -> None:
    for turn in range(MOVES):
        catalog.promote("fast", 1 + turn % 2)
    key = catalog.tier_aliases.page_key("fast", 1)
    store.overwrite(key, store.get(catalog.tier_aliases.page_key("fast", 1 + PAGE)).data)
    with pytest.raises(Tampered, match=key):
        catalog.history("fast")
    store.lose(key)
    with pytest.raises(Tampered, match="is gone: moves 1 to 25"):
        catalog.history("fast")
    assert catalog.resolve("fast").version == 1 + (MOVES - 1) % 2
