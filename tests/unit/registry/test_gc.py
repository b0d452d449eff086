"""Garbage collection takes what nothing names and nothing else, whoever publishes, promotes or dies meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dying_store import Clock, DyingStore, Killed
from schedule_strategies import schedule

from registry.catalog import Catalog
from registry.errors import NotFound
from registry.gc import GarbageCollector
from registry.schedule import Cost, Schedule
from registry.signing import SigningKey
from registry.verify import Verification

DAYS = 90
A, B, C, D = schedule(), schedule(5), schedule(3, 6), schedule(7)


class Crowded(DyingStore):
    """Lets others act in the moment before something is deleted, and in the moment after."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None
        self.where = "/schedules/"

    def delete(self, key: str) -> None:
        self._act("before", key)
        super().delete(key)
        self._act("after", key)

    def _act(self, when: str, key: str) -> None:
        act = getattr(self, when)
        if act and self.where in key:
            setattr(self, when, None)
            act()


@pytest.fixture
def store() -> Crowded:
    return Crowded()


@pytest.fixture
def catalog(store: Crowded) -> Catalog:
    """Four schedules, published long ago."""
    catalog = Catalog(store, "emoji64", clock=Clock(), author="ada")
    for published in (A, B, C, D):
        catalog.publish(published)
        catalog.attach(published.digest, "report.json", b"{}")
    pass_days(catalog, DAYS + 1)
    return catalog


def pass_days(catalog: Catalog, days: float) -> None:
    assert isinstance(catalog.writer.clock, Clock)
    catalog.writer.clock.pass_days(days)


def collect(catalog: Catalog, days: float = DAYS) -> set[str]:
    collector = GarbageCollector(catalog, days)
    return {garbage.digest for garbage in collector.remove(collector.find())}


def test_takes_what_nothing_names(catalog: Catalog, store: Crowded) -> None:
    catalog.promote("fast", 1)
    assert collect(catalog) == {B.digest, C.digest, D.digest}
    assert [key for key in store.list("emoji64/") if B.digest in key] == [
        f"emoji64/digests/{B.digest}.json",
        f"emoji64/removed/{B.digest}.json",
    ]
    assert catalog.resolve("fast").schedule == A
    with pytest.raises(NotFound, match="removed by garbage collection at 2027-02"):
        catalog.resolve(2)
    assert Verification(catalog).findings == []
    assert collect(catalog) == set()


def test_numbers_are_not_used_again(catalog: Catalog) -> None:
    collect(catalog)
    assert catalog.publish(schedule(8)).number == 5
    assert catalog.publish(B).number == 6
    assert catalog.resolve(2).schedule == catalog.resolve(6).schedule == B
    assert Verification(catalog).findings == []


def test_looking_changes_nothing(catalog: Catalog, store: Crowded) -> None:
    before = dict(store._objects)
    collectable = GarbageCollector(catalog, DAYS).find()
    assert [(garbage.digest, garbage.versions) for garbage in collectable] == sorted(
        (published.digest, (number,)) for number, published in enumerate((A, B, C, D), 1)
    )
    assert store._objects == before


def test_keeps_what_was_published_lately(catalog: Catalog) -> None:
    catalog.publish(schedule(8))
    catalog.publish(B.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)}), "described again")
    assert collect(catalog) == {A.digest, C.digest, D.digest}
    assert collect(catalog, days=0) == {schedule(8).digest, B.digest}


def test_keeps_what_was_removed_and_published_again_lately(catalog: Catalog) -> None:
    collect(catalog)
    found = GarbageCollector(catalog, DAYS)
    leftover = found.find()
    again = catalog.publish(B, "used after all")
    assert (again.number, again.digest, again.note) == (5, B.digest, "used after all")
    assert catalog.publish(B).number == 2, "now it is there, and publishing it once more changes nothing"
    assert found.remove(leftover) == []
    pass_days(catalog, DAYS - 1)
    assert collect(catalog) == set()
    pass_days(catalog, 2)
    assert collect(catalog) == {B.digest}
    assert Verification(catalog).findings == []


def test_wherever_publishing_again_dies_the_next_attempt_is_kept(catalog: Catalog, store: Crowded) -> None:
    collect(catalog)
    before = dict(store._objects)
    for writes in count():
        store._objects, store.writes = dict(before), writes
        someone = Catalog(store, "emoji64", clock=catalog.writer.clock)
        try:
            someone.publish(B)
            break
        except Killed:
            store.writes = None
        assert Verification(someone).damage == []
        someone.publish(B)
        assert collect(someone) == set()
    assert writes == 2  # the record, the document


def test_keeps_what_a_tier_meant_lately_and_the_way_back(catalog: Catalog) -> None:
    for version in (1, 2, 3):
        catalog.promote("fast", version)
        pass_days(catalog, DAYS - 10)
    assert collect(catalog) == {A.digest, D.digest}  # 2 was replaced 80 days ago
    pass_days(catalog, 1000)
    assert collect(catalog) == set()
    assert catalog.rollback("fast").version == 2


def test_keeps_what_an_experiment_names(catalog: Catalog, store: Crowded) -> None:
    store.create("emoji64/experiments/e/1.json", json.dumps({"arms": [{"digest": C.digest}]}).encode())
    assert collect(catalog) == {A.digest, B.digest, D.digest}


def test_takes_a_stray_only_when_its_claim_is_old(catalog: Catalog, store: Crowded) -> None:
    def cut_off(one: Schedule, writes: int) -> None:
        store.writes = writes
        with pytest.raises(Killed):
            catalog.publish(one)
        store.writes = None

    cut_off(schedule(1), 1)  # no claim: nobody knows how old it is
    cut_off(schedule(2), 2)
    assert collect(catalog) == {published.digest for published in (A, B, C, D)}
    pass_days(catalog, DAYS + 1)
    assert collect(catalog) == {schedule(2).digest}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("act", ["promote", "describe again", "name in an experiment"])
def test_puts_back_what_is_named_meanwhile(catalog: Catalog, store: Crowded, moment: str, act: str) -> None:
    """With one schedule to remove, whose removal somebody else comes upon."""
    for version in (1, 2, 3):
        catalog.promote(f"t{version}", version)
    someone = Catalog(store, "emoji64", clock=catalog.writer.clock)
    digest, there = D.digest, someone.resolve(4).schedule

    def name_it() -> None:
        if act == "promote":  # they read it before it was removed
            someone.schedule = lambda _: there  # type: ignore[method-assign]
            someone.promote("fast", 4)
        elif act == "describe again":
            someone.publish(D.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)}))
        else:
            store.create("emoji64/experiments/e/1.json", json.dumps(digest).encode())

    setattr(store, moment, name_it)
    assert collect(catalog) == set()
    assert catalog.schedule(digest).digest == digest
    assert store.get(f"emoji64/artifacts/{digest}/report.json").data == b"{}"
    assert Verification(Catalog(store, "emoji64")).findings == []


def test_leaves_what_is_published_again_meanwhile(catalog: Catalog, store: Crowded) -> None:
    store.after = lambda: [Catalog(store, "emoji64").publish(published) for published in (A, B, C, D)]
    assert len(collect(catalog)) == 3  # which one came back after it was removed depends on the digests
    (back,) = {A.digest, B.digest, C.digest, D.digest} & set(_stems(store, "schedules"))
    assert store.get(f"emoji64/artifacts/{back}/report.json").data == b"{}"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("beside", ["artifacts", "signatures"])
def test_leaves_what_lies_beside_a_schedule_that_is_published_again_while_it_is_removed(
    catalog: Catalog, store: Crowded, moment: str, beside: str
) -> None:
    """Who publishes, signs and attaches again finds the old files there, and leaves them: they must not go afterwards."""
    key = SigningKey(Ed25519PrivateKey.generate())
    catalog.sign(A, key)
    before = {name: store.get(name).data for name in store.list("emoji64/") if A.digest in name and "/removed/" not in name}
    someone = Catalog(store, "emoji64", clock=catalog.writer.clock)

    def publish_again() -> None:
        someone.publish(A)
        someone.sign(A, key)
        someone.attach(A.digest, "report.json", b"{}")
        someone.promote("fast", A.digest)

    setattr(store, moment, publish_again)
    store.where = f"/{beside}/{A.digest}/"
    assert A.digest not in collect(catalog)
    assert {name: store.get(name).data for name in before} == before


def _stems(store: Crowded, folder: str) -> list[str]:
    return [key.rpartition("/")[2].removesuffix(".json") for key in store.list(f"emoji64/{folder}/")]


def test_a_promotion_that_ends_after_the_collection_puts_its_schedule_back(catalog: Catalog, store: Crowded) -> None:
    someone = Catalog(store, "emoji64", clock=catalog.writer.clock)
    swap = someone.tier_aliases.move

    def late(*arguments: object) -> object:
        assert D.digest in collect(catalog)
        return swap(*arguments)  # type: ignore[arg-type]

    someone.tier_aliases.move = late  # type: ignore[assignment,method-assign]
    someone.promote("fast", 4)
    assert catalog.resolve("fast").schedule == D


def test_wherever_a_collection_dies_the_next_one_finishes(catalog: Catalog, store: Crowded) -> None:
    catalog.promote("fast", 1)
    before = dict(store._objects)
    for writes in count():
        store._objects, store.writes = dict(before), writes
        try:
            collect(catalog)
            break
        except Killed:
            store.writes = None
        assert Verification(catalog).damage == []
        collect(catalog)
        assert not [key for key in store.list("emoji64/artifacts/") if A.digest not in key]
        assert Verification(catalog).findings == []
    assert writes == 3 * 3  # three schedules: record, document, artifact
