"""The server's registry on a real S3 server: tiers are read at the start, follow promotions, and survive an outage."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import pytest
from experiments import let_die

from registry.catalog import Catalog
from registry.schedule import Schedule, Segment
from registry.stores.address import open_store
from server.experiments import events
from server.experiments.recorder import Recorder
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch


@pytest.fixture
def address(s3_server, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/server-tests"


def test_schedules_in_force_follow_the_bucket(model, address, monkeypatch):
    writer = Catalog(open_store(address), model.ref.name, author="test")

    def following():
        open_catalog = cache(lambda: Catalog(open_store(address), model.ref.name))
        schedules = ActiveSchedules(open_catalog, model, teacher_steps=4)
        return schedules, Watch(schedules, open_catalog)

    schedules, watch = following()
    assert watch.refresh()
    assert [entry.tier for entry in schedules.tiers()] == ["reference"]

    for number, segments in enumerate([(Segment(),), (Segment(partial=(1,), branch=2),) * 2], start=1):
        schedule = Schedule(model=model.ref, solver=model.solver("ddim", 4), segments=segments)
        writer.publish(schedule)
        writer.promote("fast", schedule.digest)
        assert watch.refresh()
        entry = schedules.tier("fast")
        assert (entry.digest, entry.version) == (schedule.digest, number)

    monkeypatch.setenv("FLEXI_S3_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert not following()[1].refresh()
    assert watch.refresh(), "an open store does not look at the environment again"


def test_an_object_of_events_grows_in_the_bucket(address, tmp_path):
    """Sent again and again, and by the next process; each event is there once."""
    store = open_store(address)
    it = Recorder(lambda: store, "grown", tmp_path)
    for i in range(3):
        it.record("feedback", events.RatingEvent(time=datetime.now(UTC), request_id=f"r{i}", rating=1))
        it.write()
        if i < 2:
            it.send()
    let_die(it)
    Recorder(lambda: store, "grown", tmp_path).close()
    (key,) = store.list("grown/feedback/")
    assert [event.request_id for event in events.read(key, store.get(key).data)] == ["r0", "r1", "r2"]
