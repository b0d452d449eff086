"""Numbers are dense and never reused, wherever a publisher dies or how many there are at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from dying_store import DyingStore, Killed
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from schedule_strategies import schedule

from registry.catalog import Catalog
from registry.errors import NotFound, Tampered
from registry.records import Claim, Version
from registry.schedule import Cost, Schedule
from registry.verify import Verification
from registry.versions import VersionLog
from registry.writer import Writer

OLD, NEW = schedule(5), schedule(3, 6)
REDESCRIBED = OLD.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)})


def filled(numbers: int) -> tuple[MemoryStore, VersionLog]:
    """Version records and claims of so many digests, each of which tells its number."""
    store = MemoryStore()
    versions = VersionLog(store, "emoji64", Writer.here("ada"))
    for number in range(1, numbers + 1):
        record = Version(number=number, digest=f"{number:064x}", time="2026-11-03T00:00:00Z", author="ada", note="")  # type: ignore[arg-type]
        store.create(versions.key(number), record.document())
        claim = Claim(digest=record.digest, number=number, time=record.time)
        store.create(versions.claim_key(record.digest), claim.document())
    return store, versions


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_newest_is_found_wherever_the_search_begins(numbers: int, more: int) -> None:
    store, versions = filled(numbers)
    assert versions.newest() == numbers
    for number in range(numbers + 1, numbers + more + 1):
        record = versions.get(1).model_copy(update={"number": number}) if numbers else None
        if record:
            store.create(versions.key(number), record.document())
    assert versions.newest() == numbers + (more if numbers else 0)


@pytest.mark.parametrize("one", [NEW, REDESCRIBED], ids=["new", "redescribed"])
def test_wherever_a_publisher_dies_the_next_one_completes_it(one: Schedule) -> None:
    for writes in count():
        store = DyingStore()
        Catalog(store, "emoji64").publish(OLD)
        store.writes = writes
        try:
            Catalog(store, "emoji64", author="victim").publish(one, "first try")
            break
        except Killed:
            store.writes = None
        catalog = Catalog(store, "emoji64")
        assert Verification(catalog).damage == []
        assert all(catalog.schedule(version.digest) for version in catalog.versions())
        other = catalog.publish(schedule(7))
        mine = catalog.publish(one)
        assert sorted(version.number for version in catalog.versions()) == list(range(1, catalog.version_log.newest() + 1))
        assert other.number != mine.number
        assert catalog.resolve(mine.number).schedule.digest == one.digest
        assert Verification(catalog).findings == []
    assert writes >= 2  # it died at least before and after the schedule


def test_a_claim_whose_number_was_lost_moves_on() -> None:
    store = DyingStore()
    catalog = Catalog(store, "emoji64")
    store.writes = 2  # schedule and claim
    with pytest.raises(Killed):
        catalog.publish(NEW)
    store.writes = None
    assert Catalog(store, "emoji64").publish(OLD).number == 1
    assert Catalog(store, "emoji64").publish(NEW).number == 2
    assert Catalog(store, "emoji64").publish(NEW).number == 2


def test_a_registry_is_read_and_continued() -> None:
    store, versions = filled(30)
    assert [version.number for version in versions.last(3)] == [28, 29, 30]
    assert versions.of(f"{7:064x}") == versions.get(7)
    assert versions.of("f" * 64) is None
    assert VersionLog(store, "emoji64", Writer.here()).publish(f"{9:064x}", "again").number == 9
    assert VersionLog(store, "emoji64", Writer.here()).publish("f" * 64, "new").number == 31
    assert versions.last(1)[0].digest == "f" * 64


def test_racing_publishers_get_dense_numbers_and_one_for_each_digest() -> None:
    store, digests = MemoryStore(), [f"{i:064x}" for i in range(6)]

    def publish(order: int) -> dict[str, int]:
        versions = VersionLog(store, "emoji64", Writer.here())
        return {digest: versions.publish(digest, "").number for digest in digests[order:] + digests[:order]}

    with ThreadPoolExecutor(len(digests)) as pool:
        told = list(pool.map(publish, range(len(digests))))
    assert all(numbers == told[0] for numbers in told)
    assert sorted(told[0].values()) == [1, 2, 3, 4, 5, 6]


def test_records_under_a_wrong_name_are_noticed() -> None:
    store, versions = filled(2)
    versions.of(f"{1:064x}")
    store.create(f"emoji64/digests/{'e' * 64}.json", store.get(versions.claim_key(f"{1:064x}")).data)
    with pytest.raises(Tampered, match="is the claim of"):
        versions.claim("e" * 64)
    with pytest.raises(NotFound, match="version 3: is not in"):
        versions.get(3)
