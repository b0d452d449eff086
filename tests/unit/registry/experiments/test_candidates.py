"""Candidates of tiers in a registry: who declared which, what is refused by name, and that their schedules stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule

from registry.audit_trail import candidate_moves
from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput, NotFound, Tampered
from registry.experiments.candidates import CandidateCatalog, DeclaredCandidate, candidate_of
from registry.gc import GarbageCollector
from registry.schedule import teacher
from registry.verify import Verification
from registry.writer import Writer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACTIVE, CHEAPER, OTHER = schedule(5), schedule(), schedule(3)
TEACHER = teacher(MODEL, ACTIVE.solver)


class Site:
    """A model whose tier `balanced` means `ACTIVE`; `now` is what its clocks say."""

    def __init__(self) -> None:
        self.now = NOW
        self.store = MemoryStore()
        self.catalog = Catalog(self.store, MODEL.name, author="ada", clock=lambda: self.now)
        for one in (ACTIVE, CHEAPER, OTHER):
            self.catalog.publish(one)
        self.catalog.promote("balanced", ACTIVE.digest)
        self.candidates = CandidateCatalog(self.store, MODEL.name, Writer("olga", "here", lambda: self.now))

    def candidate(self, ref: str = CHEAPER.digest, **fields: Any) -> DeclaredCandidate:
        said: dict[str, Any] = {"tier": "balanced", "share": 0.1, "until": NOW + timedelta(hours=1)} | fields
        return candidate_of(self.catalog, said["tier"], ref, said["share"], said["until"])

    def start(self, ref: str = CHEAPER.digest, **fields: Any) -> None:
        self.candidates.start(self.candidate(ref, **fields), "it costs a third less")


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_candidate_is_one_from_its_start_to_its_end(site):
    site.start()
    state = site.candidates.state("balanced")
    assert (state.newest.digest, state.newest.version, state.newest.share) == (CHEAPER.digest, 2, 0.1)
    assert state.at(NOW) == state.newest
    assert state.at(NOW + timedelta(hours=1)) is None
    site.now += timedelta(minutes=1)
    site.candidates.stop("balanced", "enough is known")
    assert site.candidates.state("balanced").at(site.now) is None
    assert [(move.action, move.author, move.host, move.reason) for move in site.candidates.state("balanced").history] == [
        ("start", "olga", "here", "it costs a third less"),
        ("stop", "olga", "here", "enough is known"),
    ]


def test_the_same_one_again_changes_share_and_end_and_another_one_has_to_wait(site):
    site.start()
    site.now += timedelta(minutes=1)
    site.start("2", share=0.5)
    state = site.candidates.state("balanced")
    assert (state.newest.share, state.since()) == (0.5, NOW)
    with pytest.raises(Conflict, match=r"tier: .*version 2 .* stop that one first"):
        site.start("3")
    site.now += timedelta(hours=1)
    site.start("3", until=site.now + timedelta(hours=1))
    assert site.candidates.state("balanced").newest.digest == OTHER.digest
    assert site.candidates.state("balanced").since() == site.now


def test_what_is_no_candidate_is_refused_by_name(site):
    foreign = CHEAPER.model_copy(update={"model": MODEL.model_copy(update={"fingerprint": "sha256:" + "1" * 64})})
    site.catalog.publish(foreign)
    site.catalog.publish(TEACHER)
    site.catalog.promote("reference", TEACHER.digest)
    for problem, fields, error in (
        ("tier: emoji64 has no tier fast, only balanced, reference", {"tier": "fast"}, NotFound),
        ("tier: reference is the teacher", {"tier": "reference"}, InvalidInput),
        ("schedule: version 1 .* is what tier balanced means already", {"ref": ACTIVE.digest}, InvalidInput),
        ("schedule: version 4 .* is for other weights than what tier balanced means", {"ref": "4"}, InvalidInput),
        ("schedule: version 5 .* is the teacher", {"ref": "5"}, InvalidInput),
        ("version 9", {"ref": "9"}, NotFound),
        ("share: Input should be less than or equal to 1", {"share": 1.5}, InvalidInput),
        ("share: Input should be greater than 0", {"share": 0.0}, InvalidInput),
        ("until: is over", {"until": NOW}, InvalidInput),
    ):
        with pytest.raises(error, match=problem):
            site.start(**fields)
    with pytest.raises(InvalidInput, match="tier: tier balanced of emoji64 has no candidate"):
        site.candidates.stop("balanced")
    assert site.candidates.tiers() == []


def test_of_two_who_declare_at_once_one_is_refused(site):
    first, second = site.candidate("2"), site.candidate("3")
    swapped = site.store.create

    def overtaken(key, data):
        site.store.create = swapped
        site.candidates.start(first)
        return swapped(key, data)

    site.store.create = overtaken
    with pytest.raises(Conflict, match=r"tier: .* stop that one first"):
        site.candidates.start(second)
    assert site.candidates.state("balanced").newest == first


def test_garbage_collection_leaves_its_schedule_and_verification_finds_no_damage(site):
    site.start()
    site.now += timedelta(days=400)
    assert [one.digest for one in GarbageCollector(site.catalog, 90).find()] == [OTHER.digest]
    assert Verification(site.catalog).findings == []


def test_the_audit_trail_tells_what_was_done_with_candidates(site):
    site.start()
    site.now += timedelta(minutes=1)
    site.candidates.stop("balanced")
    assert [move.action for move in candidate_moves(site.catalog)] == ["start", "stop"]
    assert [move.action for move in candidate_moves(site.catalog, "balanced", site.now)] == ["stop"]
    assert candidate_moves(site.catalog, "fast") == []


def test_a_record_of_another_tier_in_its_place_is_damage(site):
    site.start()
    site.store.create("emoji64/candidates/fast/state.json", site.store.get("emoji64/candidates/balanced/state.json").data)
    with pytest.raises(Tampered, match="is the record of tier balanced"):
        site.candidates.state("fast")
