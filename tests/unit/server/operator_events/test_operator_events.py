"""Operators' webhook: each event once over all servers where that can be, under one id, never in anybody's way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from experiments import START, experiment
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from server_model import small_model
from watched_site import TRUSTED, Site, Watched
from webhook_receiver import Receiver

from registry.errors import StoreUnavailable
from registry.experiments.catalog import ExperimentCatalog
from server.operator_events import announcer
from server.operator_events.announcer import Announcer
from server.operator_events.event import KEPT, OperatorEvent
from server.operator_events.registry_events import STALE, RegistryEvents
from server.storage.async_store import AsyncStore
from server.storage.sweeper import Sweeper, until_of
from server.telemetry import metrics
from server.tiers.last_good import LastGood
from server.tiers.watch import Watch
from server.webhooks.delivery import Delivery

SECRET = b"k" * 24
PATIENCE = 20.0  # seconds until a call that does not come fails a test


@pytest.fixture
def receiver():
    made = []

    def make(*statuses):
        made.append(Receiver(*statuses))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(tiny, tmp_path):
    return Site(Watched(), small_model(tiny), tmp_path / "state")


class ReadOnly(MemoryStore):
    """Takes no claim."""

    def create(self, key, data):
        raise StoreUnavailable("the bucket may only be read")


def event(number=1, age=timedelta(0)):
    return OperatorEvent("tier.promoted", f"audit/{number}", datetime.now(UTC) - age, {"tier": "fast"})


def announced(url, told, servers=1, stores=None, calls=None):
    """Let so many servers tell the same events at once; the outcomes by server, once every event has one."""
    store = MemoryStore()
    before = outcomes()

    async def run():
        async with asyncio.TaskGroup() as tasks:
            ours = [
                Announcer(url, Delivery(SECRET, private=True, pauses=(0.0, 0.0)), AsyncStore(lambda: stores or store))
                for _ in range(servers)
            ]
            following = [tasks.create_task(one.follow()) for one in ours]
            for one in ours:
                for each in told:
                    await asyncio.to_thread(one.tell, each)
            end = time.monotonic() + PATIENCE
            while sum(outcomes().values()) - sum(before.values()) < servers * len({each.id for each in told}):
                assert time.monotonic() < end, "events without an outcome"
                await asyncio.sleep(0.01)
            for task in following:
                task.cancel()
            for one in ours:
                one.close()

    asyncio.run(run())
    now = outcomes()
    return {name: int(count - before.get(name, 0)) for name, count in now.items() if count > before.get(name, 0)}


def outcomes():
    found = {}
    for sample in metrics.operator_events_total.collect()[0].samples:
        if sample.name.endswith("_total"):
            name = sample.labels["outcome"]
            found[name] = found.get(name, 0) + sample.value
    return found


def test_of_several_servers_one_tells_and_the_call_is_signed(receiver):
    server, told = receiver(500, 204), event()
    assert announced(server.url, [told, told], servers=4) == {"ok": 1, "elsewhere": 3}
    assert len(server.calls) == 2, "the receiver failed once"
    _, headers, body = server.calls[1]
    headers = {name.lower(): value for name, value in headers.items()}
    assert json.loads(body) == {
        "type": "tier.promoted",
        "timestamp": told.time.isoformat(timespec="seconds"),
        "data": {"tier": "fast"},
    }
    assert headers["webhook-id"] == told.id
    content = b".".join([told.id.encode(), headers["webhook-timestamp"].encode(), body])
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.new(SECRET, content, hashlib.sha256).digest()).decode()


def test_where_no_claim_can_be_made_all_tell_it_under_one_id(receiver):
    server, told = receiver(204), event()
    assert announced(server.url, [told], servers=3, stores=ReadOnly()) == {"ok": 3}
    assert [headers["webhook-id"] for _, headers, _ in server.calls] == [told.id] * 3


def test_a_receiver_that_takes_nothing_is_given_up_after_some_tries(receiver):
    server = receiver(500)
    assert announced(server.url, [event(1), event(2)]) == {"failed": 2}
    assert len(server.calls) == 6


def test_what_does_not_fit_the_queue_is_dropped_and_counted_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(announcer, "WAITING", 3)
    before = outcomes().get("dropped", 0)
    one = Announcer("http://127.0.0.1:9/", Delivery(SECRET), AsyncStore(MemoryStore))
    for number in range(5):
        one.tell(event(number))  # nobody follows
    assert outcomes()["dropped"] - before == 2
    one._waiting.clear()
    one.tell(event(4))  # as the next look at the registry does
    assert [waiting.id for waiting in one._waiting] == [event(4).id], "there is room now"
    one.close()


@pytest.mark.parametrize("hours", [-1, 0, 23])
def test_a_claim_is_swept_a_week_after_its_event(hours):
    """Whatever time it is told at within its day, by clocks that differ: servers that tell it at once make one claim."""
    told = event()
    assert until_of(told.claim(told.time + timedelta(hours=hours))) == int((told.time + timedelta(days=7)).timestamp())


@given(st.timedeltas(timedelta(days=1), timedelta(days=4000)))
def test_a_claim_of_what_happened_long_ago_is_kept_for_at_least_six_days_more(age):
    told = event()
    until = until_of(told.claim(told.time + age))
    assert until is not None
    assert KEPT - timedelta(days=1, seconds=1) <= datetime.fromtimestamp(until, UTC) - (told.time + age) <= KEPT


@pytest.mark.parametrize("days", [0.0, 6.99, 30.0])
def test_a_server_that_starts_after_the_sweeper_came_does_not_tell_again_however_old_an_event_is(receiver, days):
    server, told, store = receiver(204), event(age=timedelta(days=days)), MemoryStore()
    assert announced(server.url, [told], stores=store) == {"ok": 1}
    assert sweep(store) == 0
    assert announced(server.url, [told], servers=2, stores=store) == {"elsewhere": 2}


@pytest.mark.parametrize("before", [timedelta(hours=1), timedelta(hours=25), timedelta(days=5)])
def test_who_told_an_old_event_is_found_days_later(receiver, before):
    server, told, store = receiver(204), event(age=timedelta(days=30, hours=12)), MemoryStore()
    store.create(announcer.FOLDER + told.claim(datetime.now(UTC) - before), b"{}")
    assert sweep(store) == 0
    assert announced(server.url, [told, event(2)], stores=store) == {"elsewhere": 1, "ok": 1}


def sweep(store):
    return asyncio.run(Sweeper(AsyncStore(lambda: store), [announcer.FOLDER]).sweep())


def watching(site, trusted=None, clock=None):
    """The watch of a server, and what it tells."""
    told = {}
    events = RegistryEvents(
        site.model.ref.name, "memory", lambda one: told.setdefault(one.id, one), *([clock] if clock else [])
    )
    schedules, watch = site.server(trusted)
    last_good = LastGood(site.state, "memory", site.model.ref.name, trusted)
    return Watch(schedules, watch._open_catalog, last_good, observer=events), told


def types(told):
    return [one.type for one in told.values()]


def test_promotions_and_rollbacks_are_told_by_whom_and_why_the_same_on_every_server(site):
    first, second = watching(site), watching(site)
    for branch in (0, 1):
        site.promote("fast", site.schedule(branch))
    first[0].refresh()
    site.publisher.rollback("fast", "it was worse")
    for watch, _ in (first, second):
        watch.refresh()
        watch.refresh()
    assert types(first[1]) == ["tier.promoted", "tier.promoted", "tier.rolled_back"]
    assert first[1].keys() == second[1].keys()
    data = list(first[1].values())[-1].data
    assert (data["tier"], data["move"], data["author"], data["reason"]) == ("fast", 3, "test", "it was worse")


def test_what_happened_long_before_a_server_started_is_not_told(site):
    later = datetime.now(UTC) + timedelta(hours=2)
    watch, told = watching(site, clock=lambda: later)
    site.promote("fast", site.schedule(0))
    watch.refresh()
    assert types(told) == []


def test_a_move_that_is_refused_is_told_as_a_stale_tier_with_the_reason(site):
    watch, told = watching(site, TRUSTED)
    site.promote("fast", site.schedule(0), sign=True)
    watch.refresh()
    site.promote("fast", site.schedule(1))
    watch.refresh()
    watch.refresh()
    assert types(told) == ["tier.promoted", "tier.promoted", "tier.stale"]
    stale = list(told.values())[-1]
    assert (stale.data["tier"], stale.data["move"]) == ("fast", 2)
    assert "not signed by a trusted key" in str(stale.data["reason"])


def test_a_registry_that_does_not_answer_is_told_once_an_hour(site):
    time = [datetime(2030, 1, 1, 12, tzinfo=UTC)]
    watch, told = watching(site, clock=lambda: time[0])
    watch.refresh()
    site.store.down = StoreUnavailable("away")
    for _ in range(4):
        watch.refresh()
        time[0] += STALE / 2
    assert types(told) == ["registry.stale"]
    for hours, events in ((0, 1), (1, 2)):  # one an hour at most, by when it was last read
        time[0] += timedelta(hours=hours)
        site.store.down = None
        watch.refresh()
        site.store.down = StoreUnavailable("away")
        time[0] += STALE
        watch.refresh()
        assert types(told) == ["registry.stale"] * events


def test_a_rollback_of_an_experiment_is_told_with_its_evidence():
    told = {}
    experiments = ExperimentCatalog(MemoryStore(), "emoji64")
    experiments.declare(experiment(end="2999-01-01T00:00:00Z"))
    experiments.act("fewer-full-steps", "start")
    experiments.act("fewer-full-steps", "roll_back", "too slow", evidence={"metric": "service_p95", "arm": "cheaper"})
    for start in (None, lambda: START + timedelta(days=36_500)):
        events = RegistryEvents("emoji64", "memory", lambda one: told.setdefault(one.id, one), *([start] if start else []))
        events.followed(experiments.state("fewer-full-steps"))
    (one,) = told.values()
    assert one.type == "experiment.rolled_back"
    assert one.data["evidence"] == {"metric": "service_p95", "arm": "cheaper"}
