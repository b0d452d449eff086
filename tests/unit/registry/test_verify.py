"""Verification finds every kind of damage, and only damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dying_store import DyingStore
from schedule_strategies import schedule

from registry.catalog import Catalog
from registry.errors import StoreUnavailable
from registry.gc import GarbageCollector
from registry.signing import SigningKey, TrustedKeys
from registry.stores.base import Stored
from registry.tiers import PAGE
from registry.verify import Verification

A, B = schedule(5), schedule(3, 6)
OF_EXPERIMENTS = (
    "experiments/e/1.json", "experiments/e/events/1.jsonl", "holds/fast.json", "feedback/1.jsonl", "fidelity/1.jsonl",
    "candidates/fast/state.json", "candidates/fast/events/1.jsonl",
)  # fmt: skip
SCHEDULE = f"emoji64/schedules/{A.digest}.json"


@pytest.fixture
def store() -> DyingStore:
    return DyingStore()


@pytest.fixture
def catalog(store: DyingStore) -> Catalog:
    catalog = Catalog(store, "emoji64", author="ada")
    for published in (A, B):
        catalog.publish(published)
        catalog.attach(published.digest, "report.json", b"{}")
    for turn in range(2 * PAGE + 1):
        catalog.promote("fast", 1 + turn % 2)
    for key in OF_EXPERIMENTS:
        store.create(f"emoji64/{key}", b"{}")
    return catalog


def edit(store: DyingStore, key: str, **fields: object) -> None:
    store.overwrite(key, json.dumps(json.loads(store.get(key).data) | fields).encode())


def last_audit(store: DyingStore, nth: int) -> str:
    return list(store.list("emoji64/audit/"))[nth]


def test_a_sound_registry_has_no_findings(catalog: Catalog) -> None:
    verified = Verification(catalog)
    assert verified.findings == []
    assert len(verified.keys) == 2 * 4 + 1 + 1 + (2 * PAGE + 1) + len(OF_EXPERIMENTS)


DAMAGE: dict[str, tuple[Callable[[DyingStore], object], str]] = {
    "a changed schedule": (lambda s: s.overwrite(SCHEDULE, B.document()), "was changed after it was published"),
    "a cut schedule": (lambda s: s.overwrite(SCHEDULE, A.document()[:-9]), "is not a schedule"),
    "a schedule of the future": (lambda s: edit(s, SCHEDULE, format=9), "cannot be read: format"),
    "a lost schedule": (lambda s: s.lose(SCHEDULE), "names a schedule that is missing"),
    "a lost version": (lambda s: s.lose("emoji64/versions/000001.json"), "version 1: is not in"),
    "a cut version": (lambda s: s.overwrite("emoji64/versions/000001.json", b"{"), "not a valid Version"),
    "another version": (lambda s: edit(s, "emoji64/versions/000001.json", digest=B.digest), "another digest than its record"),
    "a lost claim": (lambda s: s.lose(f"emoji64/digests/{A.digest}.json"), "has no claim"),
    "a wild claim": (lambda s: edit(s, f"emoji64/digests/{A.digest}.json", number=99), "claims version 99, but 2"),
    "an alias cut": (lambda s: s.overwrite("emoji64/aliases/fast.json", b""), "not a valid Alias"),
    "a lost page": (lambda s: s.lose("emoji64/history/fast/000001.json"), "is gone: moves 1 to 25"),
    "a lost audit entry": (lambda s: s.lose(last_audit(s, 3)), "the audit entry of move 4 of tier fast is missing"),
    "a changed audit entry": (lambda s: edit(s, last_audit(s, 3), author="eve"), "does not tell the move as"),
    "an invented audit entry": (
        lambda s: s.create("emoji64/audit/2026.json", s.get(last_audit(s, 3)).data),
        "tells a move that the tier's history does not",
    ),
    "a lost alias": (lambda s: s.lose("emoji64/aliases/fast.json"), "tier fast: is not in"),
    "a cut experiment": (lambda s: s.overwrite("emoji64/experiments/e/1.json", b"{"), "not valid JSON"),
    "a cut removal": (lambda s: s.create(f"emoji64/removed/{'a' * 64}.json", b"{"), "not a valid Removal"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_finds_damage(catalog: Catalog, store: DyingStore, kind: str) -> None:
    harm, message = DAMAGE[kind]
    harm(store)
    verified = Verification(Catalog(store, "emoji64"))
    assert any(message in finding.message for finding in verified.damage), verified.findings


def test_an_alias_that_points_at_nothing_is_damage_even_if_gc_took_it(catalog: Catalog, store: DyingStore) -> None:
    collector = GarbageCollector(catalog, 90)
    collector._take(B.digest)
    collector._take(A.digest)
    messages = [finding.message for finding in Verification(catalog).damage]
    assert messages == [f"points at a schedule that is missing: {A.digest}"]


@pytest.mark.parametrize("key", ["emoji64/README.md", "emoji64/versions/notes.txt", "emoji64/else/a.json"])
def test_what_people_leave_is_only_noted(catalog: Catalog, store: DyingStore, key: str) -> None:
    store.create(key, b"?")
    (note,) = Verification(catalog).findings
    assert (note.key, note.damage) == (key, False)


def test_demands_signatures_where_keys_are_trusted(catalog: Catalog, store: DyingStore, tmp_path: Path) -> None:
    key, public = SigningKey.make(tmp_path / "key.pem")
    catalog.sign(A, key)
    verified = Verification(Catalog(store, "emoji64", trusted=TrustedKeys.read(public)))
    (unsigned,) = verified.damage
    assert B.digest in unsigned.key
    assert "not signed" in unsigned.message


def test_a_store_that_goes_away_is_no_damage(catalog: Catalog, store: DyingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(key: str) -> Stored:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(StoreUnavailable):
        Verification(catalog)
