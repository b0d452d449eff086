"""What a report reads of the store: the days since the experiment's start, several objects at a time."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from experiments import START, experiment, outcome
from memory_store import MemoryStore

from registry.errors import InvalidInput
from registry.experiments.catalog import ExperimentCatalog
from registry.writer import Writer
from server.experiments import events
from server.experiments.analysis import archive
from server.experiments.events import FidelityEvent, RatingEvent

NAME = experiment().name
PLACE = f"m/{events.stream(NAME)}"


class Store(MemoryStore):
    """Knows what was read."""

    def __init__(self):
        super().__init__()
        self.read = list[str]()

    def get(self, key):
        self.read.append(key)
        return super().get(key)


class Site:
    def __init__(self):
        self.store, self.now = Store(), START
        self.experiments = ExperimentCatalog(self.store, "m", Writer("test", "here", lambda: self.now))
        self.experiments.declare(experiment())

    def keep(self, place, request=1, name="box-00000001.jsonl"):
        self.store.create(f"{place}/{name}", events.write([outcome(request, "control", request)]))

    def stored(self, damaged=None):
        state = self.experiments.state(NAME)
        self.store.read.clear()
        events_read = archive.stored_events(self.store, "m", state, state.version, [] if damaged is None else damaged)
        return sorted(event.request_id for event in events_read)


@pytest.fixture
def site():
    return Site()


def test_what_was_never_started_has_no_events(site):
    site.keep(f"{PLACE}/2030-01-01")
    assert (site.stored(), site.store.read) == ([], [])


def test_it_begins_at_the_day_of_the_first_start(site):
    """But for a day in which clocks may differ. A pause later on hides nothing."""
    for days in (0, 3):
        site.now = START + timedelta(days=days)
        site.experiments.act(NAME, "start")
        site.experiments.act(NAME, "pause")
    for request, day in enumerate(("2028-06-01", "2029-12-30", "2029-12-31", "2030-01-01", "2030-01-05", "2031-01-01")):
        site.keep(f"{PLACE}/{day}", request)
        for place in (events.FEEDBACK, events.FIDELITY):
            rating = RatingEvent(time=START, request_id=f"r{request}", rating=1)
            site.store.create(f"m/{place}/{day}/box-00000001.jsonl", events.write([rating]))
    assert site.stored() == sorted(f"r{request}" for _ in ("outcome", "feedback", "fidelity") for request in range(2, 6))
    assert len(site.store.read) == 12, "what is older is not even read"


def test_a_new_version_begins_at_its_own_start(site):
    site.experiments.act(NAME, "start")
    site.experiments.act(NAME, "stop")
    site.now = START + timedelta(days=10)
    site.experiments.declare(experiment(version=2))
    site.experiments.act(NAME, "start")
    for request, day in enumerate(("2030-01-01", "2030-01-11")):
        site.keep(f"{PLACE}/{day}", request)
    assert site.stored() == ["r1"]


def test_what_was_learned_of_the_requests_of_others_is_not_in_it(site):
    """The whole model keeps it in one place: an experiment that ended would have more events with every day."""
    site.experiments.act(NAME, "start")
    site.keep(f"{PLACE}/2030-01-02", 1)
    site.store.create(f"{PLACE}/2030-01-02/box-00000002.jsonl", events.write([outcome(2, "control", 2, version=2)]))
    for place in (events.FEEDBACK, events.FIDELITY):
        found = [
            event
            for name in ("r1", "r2", "of-another")
            for event in (
                RatingEvent(time=START, request_id=name, rating=1),
                FidelityEvent(time=START, request_id=name, psnr=30.0),
            )
        ]
        site.store.create(f"m/{place}/2030-01-01/box-00000001.jsonl", events.write(found))
    assert site.stored() == ["r1"] * 5 + ["r2"]


def test_no_more_is_read_than_may_be_whoever_it_is_of(site):
    site.experiments.act(NAME, "start")
    site.keep(f"{PLACE}/2030-01-01", 1)
    rating = [RatingEvent(time=START, request_id=f"foreign-{place}", rating=1) for place in range(4)]
    site.store.create(f"m/{events.FEEDBACK}/2030-01-01/box-00000001.jsonl", events.write(rating))
    state = site.experiments.state(NAME)
    read = archive.stored_events(site.store, "m", state, state.version, [], most=5)
    assert [event.request_id for event in read] == ["r1"]
    with pytest.raises(InvalidInput, match="more than 4 events of this model are as young as it") as refused:
        list(archive.stored_events(site.store, "m", state, state.version, [], most=4))
    assert refused.value.param == NAME


def test_a_damaged_object_is_named_and_the_others_are_read(site):
    site.experiments.act(NAME, "start")
    for request in range(200):
        site.keep(f"{PLACE}/2030-01-01", request, f"box-{request:08d}.jsonl")
    site.store.create(f"{PLACE}/2030-01-01/box-99999999.jsonl", events.write([outcome(999, "control", 1)]) + b"{")
    damaged = []
    assert site.stored(damaged) == sorted(f"r{request}" for request in (*range(200), 999))
    assert len(damaged) == 1
    assert "box-99999999.jsonl: line 2" in damaged[0]


def test_several_objects_are_read_at_a_time(site, monkeypatch):
    site.experiments.act(NAME, "start")
    for request in range(archive.READERS):
        site.keep(f"{PLACE}/2030-01-01", request, f"box-{request:08d}.jsonl")
    together, plain = threading.Barrier(archive.READERS, timeout=60), site.store.get

    def get(key):
        if key.endswith(".jsonl"):
            together.wait()
        return plain(key)

    monkeypatch.setattr(site.store, "get", get)
    assert len(site.stored()) == archive.READERS
