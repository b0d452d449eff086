"""What the catalog promises, whoever else writes at the same time."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule, schedules

from registry.catalog import Catalog
from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, StoreUnavailable, Tampered
from registry.records import Alias, Audit, Target
from registry.schedule import Cost, Schedule
from registry.stores.base import Stored

RACERS = 8
CHEAP, MIDDLE, DEAR, FULL = schedule(), schedule(5), schedule(3, 6), schedule(steps=5)  # versions 1 to 4


class Ticking:
    """A clock that moves on by a second whenever somebody looks at it."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 3, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


class Watched(MemoryStore):
    """Notes the reads, and lets others act in the moment before a version or an alias is written."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.others: list[Callable[[], object]] = []

    def get(self, key: str) -> Stored:
        self.reads.append(key)
        return super().get(key)

    def list(self, prefix: str) -> Iterator[str]:
        self.reads.append(prefix)
        return super().list(prefix)

    def swap(self, key: str, data: bytes, etag: str) -> str:
        self._others_first()
        return super().swap(key, data, etag)

    def create(self, key: str, data: bytes) -> str:
        if "/schedules/" not in key:
            self._others_first()
        return super().create(key, data)

    def _others_first(self) -> None:
        if self.others:
            self.others.pop()()

    def overwrite(self, key: str, data: bytes) -> None:
        """What a broken disk or a careless person does."""
        self._objects[key] = data


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def catalog(store: Watched) -> Catalog:
    return Catalog(store, "emoji64", clock=Ticking(), author="ada")


def race(attempt: Callable[[int], object]) -> list[object]:
    """What eight threads got that began together: a value, or an error of ours."""
    start = threading.Barrier(RACERS)

    def run(i: int) -> object:
        start.wait()
        try:
            return attempt(i)
        except FlexiError as error:
            return error

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


class TestPublish:
    def test_numbers_versions_from_one(self, catalog: Catalog, store: Watched) -> None:
        versions = [catalog.publish(published, f"note {i}") for i, published in enumerate((CHEAP, MIDDLE, DEAR))]
        assert [version.number for version in versions] == [1, 2, 3]
        assert [version.digest for version in versions] == [CHEAP.digest, MIDDLE.digest, DEAR.digest]
        assert versions[1].author == "ada"
        assert versions[1].note == "note 1"
        assert versions[0].time < versions[1].time
        assert catalog.versions() == versions
        assert catalog.versions(last=2) == versions[1:]
        assert catalog.versions(last=9) == versions
        assert store.get(f"emoji64/schedules/{CHEAP.digest}.json").data == CHEAP.document()
        assert "emoji64/versions/000003.json" in store.list("")

    @settings(max_examples=20, deadline=None)
    @given(st.lists(schedules(st.just(MODEL)), max_size=5), st.lists(st.integers(0, 4), max_size=8))
    def test_publishing_again_changes_nothing(self, front: list[Schedule], order: list[int]) -> None:
        catalog = Catalog(MemoryStore(), "emoji64", author="ada")
        first = {one.digest: catalog.publish(one) for one in front if one not in front[: front.index(one)]}
        before = catalog.versions()
        for i in order:
            if i < len(front) and catalog.schedule(front[i].digest) == front[i]:
                assert catalog.publish(front[i], "again").digest in first
        assert catalog.versions() == before

    def test_another_description_is_a_new_version_of_the_first_document(self, catalog: Catalog) -> None:
        catalog.publish(MIDDLE)
        dearer = MIDDLE.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)})
        assert catalog.publish(dearer, "measured again").number == 2
        assert catalog.resolve(2).schedule == MIDDLE
        assert catalog.versions()[1].note == "measured again"
        assert catalog.publish(MIDDLE).number == 1

    def test_racing_publishers_leave_no_gap(self, store: Watched) -> None:
        def publish_five(i: int) -> list[int]:
            catalog = Catalog(store, "emoji64")
            return [catalog.publish(schedule(5, branch=1 + 5 * i + j)).number for j in range(5)]

        numbers = [number for numbers in race(publish_five) for number in numbers]  # type: ignore[attr-defined]
        assert sorted(numbers) == list(range(1, 5 * RACERS + 1))
        assert [version.number for version in Catalog(store, "emoji64").versions()] == sorted(numbers)

    def test_a_publisher_who_was_overtaken_takes_the_next_number(self, catalog: Catalog, store: Watched) -> None:
        store.others = [
            lambda: Catalog(store, "emoji64").publish(CHEAP),
            lambda: Catalog(store, "emoji64").publish(DEAR),
        ]
        assert catalog.publish(MIDDLE).number == 3
        assert [version.digest for version in catalog.versions()] == [CHEAP.digest, DEAR.digest, MIDDLE.digest]

    def test_a_publisher_who_was_overtaken_by_the_same_schedule_takes_its_number(
        self, catalog: Catalog, store: Watched
    ) -> None:
        store.others = [lambda: Catalog(store, "emoji64", author="bob").publish(MIDDLE)]
        assert catalog.publish(MIDDLE).author == "bob"
        assert len(catalog.versions()) == 1

    def test_racing_publishers_of_one_schedule_make_one_version(self, store: Watched) -> None:
        versions = race(lambda _: Catalog(store, "emoji64").publish(MIDDLE))
        assert {version.number for version in versions} == {1}  # type: ignore[attr-defined]
        assert len(Catalog(store, "emoji64").versions()) == 1

    def test_completes_what_a_crash_left(self, catalog: Catalog, store: Watched) -> None:
        store.create(f"emoji64/schedules/{MIDDLE.digest}.json", MIDDLE.document())
        assert catalog.publish(MIDDLE).number == 1

    def test_refuses_another_model(self, store: Watched) -> None:
        with pytest.raises(InvalidInput, match=r"model\.name"):
            Catalog(store, "sd15").publish(MIDDLE)
        assert list(store.list("")) == []

    @pytest.mark.parametrize("note", ["x" * 2001, "\ud800"])
    def test_refuses_a_note_that_cannot_be_kept(self, catalog: Catalog, note: str) -> None:
        with pytest.raises(InvalidInput, match="note"):
            catalog.publish(MIDDLE, note)

    def test_ignores_what_people_leave_in_the_folder(self, catalog: Catalog, store: Watched) -> None:
        for key in ("versions/README.md", "versions/notes.json", "aliases/README.md"):
            store.create(f"emoji64/{key}", b"?")
        assert catalog.publish(MIDDLE).number == 1
        assert catalog.aliases() == []


class TestResolve:
    @pytest.fixture(autouse=True)
    def _published(self, catalog: Catalog) -> None:
        for published in (CHEAP, MIDDLE):
            catalog.publish(published)
        catalog.promote("fast", 2)

    def test_finds_by_every_kind_of_reference(self, catalog: Catalog) -> None:
        assert catalog.resolve("fast") == (MIDDLE, 2, "fast")
        assert catalog.resolve("2") == catalog.resolve(2) == catalog.resolve("002") == (MIDDLE, 2, None)
        assert catalog.resolve(MIDDLE.digest) == catalog.resolve(MIDDLE.digest[:8]) == (MIDDLE, None, None)

    def test_a_tier_takes_two_reads(self, catalog: Catalog, store: Watched) -> None:
        store.reads.clear()
        catalog.resolve("fast")
        assert store.reads == ["emoji64/aliases/fast.json", f"emoji64/schedules/{MIDDLE.digest}.json"]

    @pytest.mark.parametrize("ref", ["slow", "3", 0, "f" * 64, "f" * 8, "reference"])
    def test_says_what_is_missing(self, catalog: Catalog, ref: str | int) -> None:
        with pytest.raises(NotFound, match=str(ref)):
            catalog.resolve(ref)

    @pytest.mark.parametrize("ref", ["", "../x", "Fast", "a/b", "x" * 65, "auto", "-1"])
    def test_refuses_what_is_no_reference(self, catalog: Catalog, ref: str) -> None:
        with pytest.raises(InvalidInput, match="tier"):
            catalog.resolve(ref)

    def test_refuses_a_beginning_of_two_digests(self, catalog: Catalog, store: Watched) -> None:
        store.create(f"emoji64/schedules/{MIDDLE.digest[:10]}{'0' * 54}.json", b"")
        with pytest.raises(InvalidInput, match="2 schedules: give more digits"):
            catalog.resolve(MIDDLE.digest[:10])
        assert catalog.resolve(MIDDLE.digest).schedule == MIDDLE

    @pytest.mark.parametrize("ref", ["fast", 2, MIDDLE.digest, MIDDLE.digest[:8]])
    @pytest.mark.parametrize(
        "data",
        [
            CHEAP.document(),
            MIDDLE.document().replace(b'"branch":3', b'"branch":2', 1),
            MIDDLE.document()[:-10],
            b"{}",
            b"",
        ],
        ids=["another", "one digit", "cut off", "empty object", "empty"],
    )
    def test_notices_tampering(self, catalog: Catalog, store: Watched, ref: str | int, data: bytes) -> None:
        key = f"emoji64/schedules/{MIDDLE.digest}.json"
        assert data != store.get(key).data
        store.overwrite(key, data)
        with pytest.raises(Tampered, match=MIDDLE.digest):
            catalog.resolve(ref)

    def test_notices_a_schedule_of_another_model(self, store: Watched) -> None:
        store.create(f"sd15/schedules/{MIDDLE.digest}.json", MIDDLE.document())
        with pytest.raises(Tampered, match="emoji64, not sd15"):
            Catalog(store, "sd15").resolve(MIDDLE.digest)

    def test_notices_a_tier_that_points_nowhere(self, catalog: Catalog, store: Watched) -> None:
        del store._objects[f"emoji64/schedules/{MIDDLE.digest}.json"]
        with pytest.raises(Tampered, match="fast: points at a schedule that is gone"):
            catalog.resolve("fast")

    def test_notices_records_under_a_wrong_name(self, catalog: Catalog, store: Watched) -> None:
        store.create("emoji64/versions/000003.json", store.get("emoji64/versions/000001.json").data)
        store.create("emoji64/aliases/best.json", store.get("emoji64/aliases/fast.json").data)
        for ref in ("3", "best"):
            with pytest.raises(Tampered):
                catalog.resolve(ref)

    def test_notices_an_alias_that_contradicts_its_history(self, catalog: Catalog, store: Watched) -> None:
        key = "emoji64/aliases/fast.json"
        alias = json.loads(store.get(key).data) | {"digest": CHEAP.digest, "version": 1}
        store.overwrite(key, json.dumps(alias).encode())
        with pytest.raises(Tampered, match="newest history entry"):
            catalog.resolve("fast")


class TestTiers:
    @pytest.fixture(autouse=True)
    def _published(self, catalog: Catalog) -> None:
        for published in (CHEAP, MIDDLE, DEAR, FULL):
            catalog.publish(published)

    def test_promote_moves_the_tier_and_remembers(self, catalog: Catalog) -> None:
        catalog.promote("fast", 1, "first")
        alias = catalog.promote("fast", DEAR.digest[:8], "better")
        assert catalog.resolve("fast") == (DEAR, 3, "fast")
        assert alias == catalog.alias("fast") == catalog.aliases()[0]
        entries = catalog.history("fast")
        assert [(move.version, move.author, move.reason) for move in entries] == [
            (1, "ada", "first"),
            (3, "ada", "better"),
        ]
        assert entries[0].time < entries[1].time

    def test_promote_takes_another_tier(self, catalog: Catalog) -> None:
        catalog.promote("fast", 2)
        catalog.promote("draft", "fast")
        catalog.promote("fast", 3)
        assert [(alias.tier, alias.version) for alias in catalog.aliases()] == [("draft", 2), ("fast", 3)]

    def test_promoting_what_is_current_changes_nothing(self, catalog: Catalog, store: Watched) -> None:
        first = catalog.promote("fast", 2)
        before = list(store.list(""))
        assert catalog.promote("fast", 2, "again") == first
        assert list(store.list("")) == before

    def test_every_move_is_audited(self, catalog: Catalog, store: Watched) -> None:
        catalog.promote("fast", 1, "first")
        catalog.promote("fast", 2, "second")
        catalog.rollback("fast", "oops")
        keys = list(store.list("emoji64/audit/"))
        trail = [Audit.read(key, store.get(key).data) for key in keys]
        one, two = (Target(digest=schedule.digest, version=i) for i, schedule in ((1, CHEAP), (2, MIDDLE)))
        assert [(entry.action, entry.before, entry.after, entry.reason) for entry in trail] == [
            ("promote", None, one, "first"),
            ("promote", one, two, "second"),
            ("rollback", two, one, "oops"),
        ]
        assert {entry.author for entry in trail} == {"ada"}
        assert [entry.time for entry in trail] == [entry.time for entry in catalog.history("fast")]

    def test_a_move_without_its_audit_entry_is_still_reported_as_done(
        self, catalog: Catalog, store: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        create = store.create

        def fail(key: str, data: bytes) -> str:
            if "/audit/" in key:
                raise StoreUnavailable("the disk is full")
            return create(key, data)

        monkeypatch.setattr(store, "create", fail)
        with caplog.at_level(logging.WARNING):
            assert catalog.promote("fast", 1).version == 1
        assert "the disk is full" in caplog.text

    def test_racing_promotions_all_stay_in_the_history(self, catalog: Catalog, store: Watched) -> None:
        versions = [catalog.publish(schedule(7, branch=i + 1)).number for i in range(RACERS)]
        race(lambda i: Catalog(store, "emoji64").promote("fast", versions[i], f"racer {i}"))
        history = catalog.history("fast")
        assert sorted(move.version for move in history) == versions
        assert sorted(move.reason for move in history) == [f"racer {i}" for i in range(RACERS)]
        assert len(list(store.list("emoji64/audit/"))) == RACERS

    def test_of_racers_who_saw_the_same_only_one_moves_the_tier(self, catalog: Catalog, store: Watched) -> None:
        versions = [catalog.publish(schedule(7, branch=i + 1)).number for i in range(RACERS)]
        catalog.promote("fast", 1)
        results = race(lambda i: Catalog(store, "emoji64", author=f"racer {i}").promote("fast", versions[i], moves=1))
        (winner,) = [result for result in results if isinstance(result, Alias)]
        refused = [result for result in results if isinstance(result, Conflict)]
        assert len(refused) == RACERS - 1
        assert catalog.alias("fast") == winner
        assert winner.moves == 2
        assert all(winner.history[-1].author in error.message for error in refused)

    def test_racing_rollbacks_go_back_once(self, catalog: Catalog, store: Watched) -> None:
        for version in (1, 2, 3):
            catalog.promote("fast", version)
        seen = threading.Barrier(RACERS)
        alias = Catalog.alias

        class Slow(Catalog):
            def alias(self, tier: str) -> Alias:
                current = alias(self, tier)
                seen.wait()
                return current

        results = race(lambda _: Slow(store, "emoji64").rollback("fast"))
        assert sum(isinstance(result, Alias) for result in results) == 1
        assert sum(isinstance(result, Conflict) for result in results) == RACERS - 1
        assert [move.version for move in catalog.history("fast")] == [1, 2, 3, 2]

    def test_a_promotion_that_was_overtaken_comes_after(self, catalog: Catalog, store: Watched) -> None:
        catalog.promote("fast", 1)
        store.others = [lambda: Catalog(store, "emoji64").promote("fast", 2)]
        catalog.promote("fast", 3)
        assert [move.version for move in catalog.history("fast")] == [1, 2, 3]

    def test_rollback_goes_to_the_schedule_before(self, catalog: Catalog) -> None:
        for version in (1, 2, 3):
            catalog.promote("fast", version)
        assert catalog.rollback("fast", "bad").version == 2
        assert [move.version for move in catalog.history("fast")] == [1, 2, 3, 2]
        assert catalog.history("fast")[-1].reason == "bad"

    def test_rollback_skips_other_versions_of_the_same_schedule(self, catalog: Catalog) -> None:
        again = catalog.publish(MIDDLE.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)}))
        for version in (1, 2, again.number):
            catalog.promote("fast", version)
        assert catalog.rollback("fast").digest == CHEAP.digest

    def test_rollback_undoes_nobody_elses_move(self, catalog: Catalog, store: Watched) -> None:
        catalog.promote("fast", 1)
        catalog.promote("fast", 2)
        store.others = [lambda: Catalog(store, "emoji64").promote("fast", 3)]
        with pytest.raises(Conflict, match="moved by somebody else"):
            catalog.rollback("fast")
        assert catalog.alias("fast").version == 3

    def test_rollback_needs_a_past(self, catalog: Catalog) -> None:
        with pytest.raises(NotFound, match="tier fast: is not in"):
            catalog.rollback("fast")
        catalog.promote("fast", 1)
        with pytest.raises(NotFound, match="never meant another schedule"):
            catalog.rollback("fast")

    @pytest.mark.parametrize("tier", ["auto", "42", "deadbeef", "Fast", "a/b", "", "x" * 65, "fast\n"])
    def test_refuses_names_that_mean_something_else(self, catalog: Catalog, store: Watched, tier: str) -> None:
        with pytest.raises(InvalidInput, match="tier"):
            catalog.promote(tier, 1)
        assert list(store.list("emoji64/a")) == []

    def test_the_reference_is_the_teacher(self, catalog: Catalog) -> None:
        with pytest.raises(InvalidInput, match="all full"):
            catalog.promote("reference", 1)
        assert catalog.promote("reference", 4).digest == FULL.digest

    def test_promotes_only_what_was_published(self, catalog: Catalog, store: Watched) -> None:
        stray = schedule(1)
        store.create(f"emoji64/schedules/{stray.digest}.json", stray.document())
        with pytest.raises(NotFound, match="publish it"):
            catalog.promote("fast", stray.digest)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 4), max_size=12))
    def test_history_tells_every_move(self, moves: list[int]) -> None:
        """Against a plain list: 0 rolls back, a number promotes that version."""
        catalog = Catalog(MemoryStore(), "emoji64", clock=Ticking(), author="ada")
        for published in (CHEAP, MIDDLE, DEAR, FULL):
            catalog.publish(published)
        past: list[int] = []
        for move in moves:
            if move == 0:
                earlier = [version for version in past if version != past[-1]]
                if not earlier:
                    with pytest.raises(NotFound):
                        catalog.rollback("fast")
                    continue
                catalog.rollback("fast")
                past.append(earlier[-1])
            else:
                catalog.promote("fast", move)
                past += [move] if past[-1:] != [move] else []
        assert [move.version for alias in catalog.aliases() for move in alias.history] == past


@pytest.mark.parametrize("name", ["", "..", "a/b", "Emoji"])
def test_a_catalog_needs_a_model_name(store: Watched, name: str) -> None:
    with pytest.raises(InvalidInput, match="model"):
        Catalog(store, name)


def test_records_round_trip(catalog: Catalog) -> None:
    catalog.publish(MIDDLE)
    alias = catalog.promote("fast", 1, "“quotes” and ünïcode")
    assert Alias.read("key", alias.document()) == alias
    with pytest.raises(Tampered, match="key: is not a valid Alias: tier"):
        Alias.read("key", b"{}")


def test_an_artifact_is_kept_beside_its_schedule_and_never_replaced() -> None:
    store = MemoryStore()
    catalog = Catalog(store, "emoji64")
    for data in (b"first", b"second"):
        catalog.attach("ab" * 32, "pareto.png", data)
    assert store.get(f"emoji64/artifacts/{'ab' * 32}/pareto.png").data == b"first"
