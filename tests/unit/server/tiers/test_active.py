"""The schedules in force follow the registry, and keep the last good set when it fails."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from memory_store import MemoryStore
from server_model import small_model

from registry.catalog import Catalog
from registry.errors import InvalidInput, NotFound, StoreUnavailable
from registry.schedule import Schedule, Segment
from server.telemetry import metrics
from server.tiers.active import EXPLICIT_KEPT, LOOKUPS, WAITING, ActiveSchedules
from server.tiers.watch import Watch


class Moody(MemoryStore):
    """A store that fails on demand and can be written behind the catalog's back."""

    down = False

    def get(self, key):
        if self.down:
            raise StoreUnavailable("the store is down")
        return super().get(key)

    def overwrite(self, key, data):
        self._objects[key] = data


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture
def store():
    return Moody()


@pytest.fixture
def catalog(store, model):
    return Catalog(store, model.ref.name, author="test")


@pytest.fixture
def schedules(catalog, model):
    return ActiveSchedules(lambda: catalog, model, teacher_steps=4)


@pytest.fixture
def watch(schedules, catalog):
    return Watch(schedules, lambda: catalog)


def promoted(catalog, model, tier, *segments):
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)
    catalog.publish(schedule)
    catalog.promote(tier, schedule.digest)
    return schedule


def test_reference_is_there_without_a_registry(schedules):
    (entry,) = schedules.tiers()
    assert (entry.tier, entry.relative_cost, entry.version) == ("reference", 1.0, None)
    assert entry.schedule.counts()["full"] == 4


def test_tiers_follow_their_aliases(schedules, watch, catalog, model):
    first = promoted(catalog, model, "fast", Segment(), Segment())
    assert watch.refresh()
    entry = schedules.tier("fast")
    assert (entry.digest, entry.version, entry.relative_cost) == (first.digest, 1, 0.5)
    second = promoted(catalog, model, "fast", Segment())
    watch.refresh()
    assert (schedules.tier("fast").digest, schedules.tier("fast").version) == (second.digest, 2)
    assert [entry.tier for entry in schedules.tiers()] == ["fast", "reference"]
    info = {
        sample.labels["digest"]: sample.value
        for sample in metrics.schedule_info.collect()[0].samples
        if sample.labels["tier"] == "fast" and sample.labels["digest"] in (first.digest, second.digest)
    }
    assert info == {first.digest: 0, second.digest: 1}


def test_costs_are_relative_to_the_reference_in_force(schedules, watch, catalog, model):
    promoted(catalog, model, "fast", Segment(), Segment())
    longer = Schedule(model=model.ref, solver=model.solver("ddim", 8), segments=(Segment(),) * 8)
    catalog.promote("reference", catalog.publish(longer).number)
    watch.refresh()
    assert schedules.tier("reference").relative_cost == 1.0
    assert schedules.tier("fast").relative_cost == 0.25
    other = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),))
    catalog.publish(other)
    assert schedules.explicit(other.digest).relative_cost == 0.125


def test_a_program_is_compiled_once_per_digest(schedules, watch, catalog, model):
    promoted(catalog, model, "fast", Segment(), Segment())
    watch.refresh()
    program = schedules.tier("fast").program
    catalog.promote("best", schedules.tier("fast").digest)
    watch.refresh()
    assert schedules.tier("fast").program is schedules.tier("best").program is program


def test_a_store_that_fails_changes_nothing(schedules, watch, catalog, model, store):
    promoted(catalog, model, "fast", Segment(), Segment())
    watch.refresh()
    before, errors = schedules.tiers(), metrics.registry_errors_total._value.get()
    store.down = True
    assert not watch.refresh()
    assert schedules.tiers() == before
    assert metrics.registry_errors_total._value.get() == errors + 1
    assert schedules.explicit(before[0].digest).program is before[0].program  # needs no store


def test_a_bad_document_leaves_its_tier_as_it_was(schedules, watch, catalog, model, store):
    good = promoted(catalog, model, "fast", Segment(), Segment())
    watch.refresh()
    bad = promoted(catalog, model, "fast", Segment())
    store.overwrite(f"{model.ref.name}/schedules/{bad.digest}.json", b"{}")
    other = promoted(catalog, model, "best", *[Segment()] * 4)
    assert watch.refresh()
    assert schedules.tier("fast").digest == good.digest
    assert schedules.tier("best").digest == other.digest


def test_a_damaged_alias_or_a_stray_file_freezes_no_other_tier(schedules, watch, catalog, model, store):
    good = promoted(catalog, model, "fast", Segment(), Segment())
    watch.refresh()
    store.overwrite(f"{model.ref.name}/aliases/fast.json", b"{}")
    store.overwrite(f"{model.ref.name}/aliases/README.json", b"not ours")
    other = promoted(catalog, model, "best", *[Segment()] * 4)
    assert watch.refresh()
    assert (schedules.tier("fast").digest, schedules.tier("best").digest) == (good.digest, other.digest)


def test_a_schedule_for_other_weights_is_not_put_in_force(schedules, watch, catalog, model):
    ref = model.ref.model_copy(update={"fingerprint": f"sha256:{'1' * 64}"})
    other = Schedule(model=ref, solver=model.solver("ddim", 4), segments=(Segment(),))
    catalog.publish(other)
    catalog.promote("fast", other.digest)
    watch.refresh()
    with pytest.raises(NotFound, match="reference"):
        schedules.tier("fast")
    with pytest.raises(InvalidInput) as refused:
        schedules.explicit(other.digest)
    assert refused.value.param == "schedule"


def test_explicit(schedules, catalog, model):
    schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(partial=(1,), branch=2),) * 2)
    catalog.publish(schedule)
    for ref in (schedule.digest, schedule.digest[:8], "1"):
        entry = schedules.explicit(ref)
        assert (entry.digest, entry.tier) == (schedule.digest, None)
    with pytest.raises(NotFound) as missing:
        schedules.explicit("2")
    assert missing.value.param == "schedule"


def test_a_schedule_that_was_asked_for_lately_needs_no_registry(schedules, catalog, model, store):
    kept = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=(Segment(),) * 2)
    catalog.publish(kept)
    entry = schedules.explicit("1")
    for steps in range(5, 5 + EXPLICIT_KEPT):
        schedule = Schedule(model=model.ref, solver=model.solver("ddim", steps), segments=(Segment(),))
        catalog.publish(schedule)
        schedules.explicit(schedule.digest)
        schedules.explicit("1")
    store.down = True
    assert schedules.explicit("1") == schedules.at_hand("1") == entry
    assert asyncio.run(schedules.find("1")) == entry
    assert len(schedules._explicit) == EXPLICIT_KEPT


def test_a_registry_that_hangs_keeps_few_lookups_waiting_and_nobody_else(model, caplog):
    over = threading.Event()

    def hanging():
        over.wait(60)
        raise StoreUnavailable("the test is over")

    schedules = ActiveSchedules(hanging, model, teacher_steps=4)

    async def go():
        waiting = [asyncio.create_task(schedules.find(str(number))) for number in range(LOOKUPS + WAITING)]
        await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable, match=str(WAITING)) as refused:
            await schedules.find("99")
        assert refused.value.param == "schedule"
        reference = schedules.tier("reference")
        assert (await schedules.find(reference.digest)).program is reference.program
        for _ in range(3):  # those who give up make room, and leave nothing behind
            waiting.pop().cancel()
            await asyncio.sleep(0.01)
            waiting.append(asyncio.create_task(schedules.find("99")))
            await asyncio.sleep(0.01)
            assert not waiting[-1].done()
        for lookup in waiting[:LOOKUPS]:  # their threads are not free before the registry answers
            lookup.cancel()
        await asyncio.sleep(0.01)
        assert schedules._threads._work_queue.empty()
        over.set()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in ended[LOOKUPS:]} == {StoreUnavailable}

    try:
        asyncio.run(asyncio.wait_for(go(), 30))
    finally:
        over.set()
    gc.collect()
    assert not caplog.records, "asyncio tells of what nobody waited for"
