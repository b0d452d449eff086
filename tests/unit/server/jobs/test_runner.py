"""Jobs run once and end once, whoever dies, whoever is slow, and whether or not the store is there."""

from __future__ import annotations

import asyncio
import time

import pytest
from job_records import job
from job_workers import LIMITS, Hooks, Worker, takes_the_rest
from lossy_store import LossyStore

from registry.errors import Conflict, InvalidInput, NotFound, Overloaded, StoreUnavailable, Unsupported
from server.access.keys import Key
from server.errors import DeadlineExceeded, GenerationFailed, MarkingFailed, NotReady, QuotaExceeded
from server.jobs.job_store import ENDED, IDEMPOTENT, OPEN
from server.jobs.jobs import JobLimits
from server.jobs.leases import HOLDERS
from server.jobs.leftovers import Leftovers
from server.jobs.record import ImageJob
from server.jobs.runner import MAX_ATTEMPTS, READ_AGAIN
from server.storage import sweeper
from server.storage.async_store import AsyncStore
from server.storage.kept_files import FOLDER
from server.storage.sweeper import GRACE, Sweeper
from server.telemetry import metrics


def keys(store, prefix):
    return list(store.list(prefix))


def test_a_job_succeeds_and_its_images_are_kept(store):
    async def go():
        worker = Worker(store)
        kept = await worker.bring("heart", output_format="webp")
        assert (kept.state, kept.owner.name, kept.request.priority) == ("queued", "anonymous", "background")
        end = await worker.end_of(kept)
        assert (end.state, end.error, end.result.macs) == ("succeeded", None, 10)
        file = await worker.jobs._run._files.read(end.files[0])
        assert (file.data, file.media_type, file.until) == (b"heart", "image/webp", kept.until)
        assert keys(store, OPEN) == []
        assert worker.asked[0].seed == kept.request.seed is not None, "whoever runs it makes the same images"

    asyncio.run(go())


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (GenerationFailed("no"), "failed", "generation_failed"),
        (NotFound("gone", param="tier"), "failed", "not_found"),
        (InvalidInput("too large"), "failed", "invalid_input"),
        (ZeroDivisionError(), "failed", "internal_error"),
        (DeadlineExceeded("late"), "expired", "deadline_exceeded"),
    ],
)
def test_what_goes_wrong_ends_a_job_in_the_shape_of_the_apis_errors(store, error, state, code):
    async def go():
        worker = Worker(store)
        worker.fails(error)
        kept = await worker.bring()
        end = await worker.end_of(kept)
        assert (end.state, end.error.code, end.error.request_id) == (state, code, kept.id)
        assert keys(store, OPEN) == []

    asyncio.run(go())


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after=0.01),
        QuotaExceeded("used up", retry_after=0.01),
        NotReady("lost"),
        MarkingFailed("no timestamp", retry_after=0.01),
        StoreUnavailable("away", param="schedule"),
    ],
    ids=lambda error: error.code,
)
def test_what_is_not_the_jobs_fault_lets_it_wait(store, error):
    async def go():
        worker = Worker(store)
        worker.fails(error, error, error, error, error)
        end = await worker.end_of(await worker.bring())
        assert end.state == "succeeded"
        assert len(worker.asked) == 6
        assert end.job.attempts == 1

    asyncio.run(go())


def test_a_job_whose_worker_dies_is_done_by_another_and_ends_once(store):
    async def go():
        first, second = Worker(store), takes_the_rest(Worker(store))
        first.go.clear()
        kept = await first.bring()
        await first.turn()
        await first.running.wait()
        assert (await second.jobs.find("anonymous", kept.id)).state == "running"
        await second.turn()
        assert second.asked == [], "the first one lives, as far as one can see"
        await first.die()
        end = await second.end_of(kept)
        assert (end.state, end.job.attempts) == ("succeeded", 2)
        assert second.asked == first.asked
        assert len(keys(store, FOLDER)) == 1

    asyncio.run(go())


def test_a_slow_worker_that_was_taken_for_dead_ends_nothing_twice(store):
    async def go():
        slow, other = Worker(store), takes_the_rest(Worker(store))
        slow.go.clear()
        kept = await slow.bring()
        await slow.turn()
        await slow.running.wait()
        for _ in range(2):
            await other.turn()
        end = await other.end_of(kept)
        before = store.get(ENDED + kept.place)
        slow.go.set()
        assert (await slow.end_of(kept)) == end
        assert store.get(ENDED + kept.place) == before
        assert keys(store, OPEN) == []

    asyncio.run(go())


def test_a_job_on_which_workers_die_is_not_begun_for_ever(store):
    async def go():
        for _ in range(MAX_ATTEMPTS):
            worker = takes_the_rest(Worker(store))
            worker.go.clear()
            if not keys(store, OPEN):
                kept = await worker.bring()
            while not worker.asked:
                await worker.turn()
                await asyncio.sleep(0)
            await worker.die()
        last = takes_the_rest(Worker(store))
        end = await last.end_of(kept)
        assert (end.state, end.error.code) == ("failed", "generation_failed")
        assert last.asked == []

    asyncio.run(go())


def test_a_worker_that_ends_gives_back_what_it_holds_and_others_begin_at_once(store):
    async def go():
        first, second = Worker(store), Worker(store)
        first.go.clear()
        kept = await first.bring()
        await first.turn()
        await first.running.wait()
        await first.runner.close()
        assert keys(store, HOLDERS) == []
        end = await second.end_of(kept)
        assert (end.state, end.job.attempts) == ("succeeded", 1)

    asyncio.run(go())


def test_a_worker_that_was_taken_for_dead_gives_back_nothing_that_others_hold_now(store):
    async def go():
        first, second, third = Worker(store), takes_the_rest(Worker(store)), Worker(store)
        first.go.clear()
        second.go.clear()
        kept = await first.bring()
        await first.turn()
        await first.running.wait()
        for _ in range(2):
            await second.turn()
        await second.running.wait()
        before = store.get(OPEN + kept.place)
        await first.runner.close()
        assert store.get(OPEN + kept.place) == before
        await third.turn()
        assert third.runner._running == {}, "the second one is at it"
        second.go.set()
        end = await second.end_of(kept)
        assert (end.state, end.job.attempts) == ("succeeded", 2)

    asyncio.run(go())


@pytest.mark.parametrize("folder", [FOLDER, ENDED])
def test_while_the_store_is_away_what_is_done_waits_and_nothing_is_made_twice(store, folder):
    async def go():
        worker = Worker(store)
        refused = []

        def refuses(verb, key):
            return verb == "create" and key.startswith(folder) and (refused.append(key) or len(refused) <= 3)

        store.refuses = refuses
        kept = await worker.bring()
        assert (await worker.end_of(kept)).state == "succeeded"
        assert len(refused) == 4
        assert len(worker.asked) == 1

    asyncio.run(go())


@pytest.mark.parametrize("webhook", [None, "http://127.0.0.1/done"])
@pytest.mark.parametrize("here", [True, False], ids=["its own worker", "another worker"])
def test_a_cancelled_job_stops_wherever_it_runs(store, here, webhook):
    async def go():
        hooks = Hooks()
        worker, other = (Worker(store, webhooks=hooks) for _ in range(2))
        worker.go.clear()
        kept = await worker.bring(webhook=webhook)
        await worker.turn()
        await worker.running.wait()
        end = await (worker if here else other).jobs.cancel("anonymous", kept.id)
        assert (end.state, end.error.code) == ("cancelled", "cancelled")
        await worker.runner.look()
        await asyncio.sleep(0.01)
        await worker.turn()
        await asyncio.sleep(0.01)
        assert worker.runner._running == {}
        worker.go.set()
        assert await worker.end_of(kept) == end
        assert await worker.jobs.cancel("anonymous", kept.id) == end, "a second time changes nothing"
        assert keys(store, FOLDER) == keys(store, OPEN) == []

    asyncio.run(go())


def test_a_job_that_ended_is_not_cancelled_any_more(store):
    async def go():
        worker = Worker(store)
        end = await worker.end_of(await worker.bring())
        assert await worker.jobs.cancel("anonymous", end.job.id) == end
        assert end.state == "succeeded"

    asyncio.run(go())


def test_a_key_sees_its_own_jobs_only(store):
    async def go():
        worker, anna, bob = Worker(store), Key("anna", None, None), Key("bob", None, None)
        kept = [await worker.bring(key=key) for key in (anna, bob, anna)]
        for owner, of in (("anna", kept[0::2]), ("bob", kept[1:2])):
            found, more = await worker.jobs.page(owner, 10)
            assert {job.id for job in found} == {job.id for job in of}
            assert not more
        for verb in (worker.jobs.find, worker.jobs.cancel):
            with pytest.raises(NotFound):
                await verb("bob", kept[0].id)
        assert (await worker.jobs.find("anna", kept[0].id)).state == "queued"

    asyncio.run(go())


def test_pages_hold_every_job_once_the_newest_first(store):
    async def go():
        times = iter(range(1_800_000_000, 1_800_000_100))
        worker = Worker(store, clock=lambda: float(next(times)), limits=JobLimits(9, 3600, 3600))
        kept = [(await worker.bring()).id for _ in range(5)]
        seen, after, more = [], "", True
        while more:
            found, more = await worker.jobs.page("anonymous", 2, after)
            seen += [job.id for job in found]
            after = seen[-1]
        assert seen == kept[::-1]

    asyncio.run(go())


def test_an_idempotency_key_means_one_job_also_at_the_same_time_and_on_several_workers(store):
    async def go():
        workers = [Worker(store), Worker(store)]
        many = await asyncio.gather(*(worker.bring(idempotency=("k", b"same")) for worker in workers for _ in range(3)))
        assert len({job.id for job in many}) == 1
        assert len(keys(store, OPEN)) == 1
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await workers[0].bring(idempotency=("k", b"other"))
        assert (await workers[0].bring(idempotency=("k2", b"other"))).id != many[0].id
        assert (await workers[0].bring(key=Key("anna", None, None), idempotency=("k", b"other"))).owner.name == "anna"
        end = await workers[1].end_of(many[0])
        assert await workers[0].bring(idempotency=("k", b"same")) == end

    asyncio.run(go())


def test_a_key_has_so_many_open_jobs_at_most_and_others_have_theirs(store):
    async def go():
        worker = Worker(store)
        for _ in range(LIMITS.most):
            kept = await worker.bring()
        with pytest.raises(Overloaded, match="3 of your jobs"):
            await worker.bring()
        await worker.bring(key=Key("anna", None, None))
        await worker.end_of(kept)
        await worker.bring()
        with pytest.raises(Unsupported, match="FLEXI_MAX_JOBS"):
            await Worker(store, limits=JobLimits(0, 1, 1)).bring()

    asyncio.run(go())


def test_a_job_that_was_brought_before_is_answered_whatever_would_be_said_of_a_new_one(store):
    async def go():
        worker = Worker(store, webhooks=Hooks(may=False))
        kept = await worker.bring(webhook="http://127.0.0.1/done", idempotency=("k", b"x"))
        for _ in range(LIMITS.most - 1):
            await worker.bring()
        end = await worker.end_of(kept)
        for _ in range(LIMITS.most - worker.runner.known.count("anonymous")):
            await worker.bring()
        none = Worker(store, limits=JobLimits(0, 1, 1))
        for other in (worker, none):
            with pytest.raises((Overloaded, Unsupported)):
                await other.bring()
            assert await other.bring(webhook="http://127.0.0.1/done", idempotency=("k", b"x")) == end
            with pytest.raises(Conflict, match="Idempotency-Key"):
                await other.bring(idempotency=("k", b"other"))
            with pytest.raises((Overloaded, Unsupported)):
                await other.bring(idempotency=("k2", b"x"))
        assert len(keys(store, IDEMPOTENT)) == 1, "a key that brought no job is free"

    asyncio.run(go())


def test_owners_take_turns_and_one_whose_quota_is_used_up_holds_up_nobody(store):
    async def go():
        worker = Worker(store, together=1, limits=JobLimits(99, 3600, 3600))
        anna, bob = Key("anna", None, None), Key("bob", None, None)
        for prompt in ("a1", "a2", "a3"):
            await worker.bring(prompt, anna)
        last = await worker.bring("b1", bob)
        worker.fails(QuotaExceeded("used up", retry_after=60))
        await worker.end_of(last)
        assert [request.prompt for request in worker.asked] == ["a1", "b1"]

        several = Worker(LossyStore(), together=2, limits=JobLimits(99, 3600, 3600))
        several.go.clear()
        for prompt in ("a1", "a2", "a3"):
            await several.bring(prompt, anna)
        await several.bring("b1", bob)
        await several.turn()
        await asyncio.sleep(0.01)
        assert [request.prompt for request in several.asked] == ["a1", "b1"]

    asyncio.run(go())


def test_a_job_of_a_model_that_is_elsewhere_waits_for_a_server_that_has_it(store):
    async def go():
        here, there = Worker(store, serves=lambda model: model == "mine"), Worker(store)
        kept = await here.bring(model="theirs")
        for _ in range(3):
            await here.turn()
        assert isinstance(await here.jobs.find("anonymous", kept.id), ImageJob)
        assert (await there.end_of(kept)).state == "succeeded"
        assert here.asked == []

    asyncio.run(go())


def test_a_model_that_is_away_holds_up_no_jobs_of_others(store):
    async def go():
        worker = Worker(store, together=1)
        worker.fails(NotReady("the model broken cannot be served", param="model"))
        waits, runs = await worker.bring(model="broken"), await worker.bring(model="well")
        assert (await worker.end_of(runs)).state == "succeeded"
        assert isinstance(await worker.jobs.find("anonymous", waits.id), ImageJob)
        assert [request.model for request in worker.asked] == ["broken", "well"]

    asyncio.run(go())


def test_what_a_live_worker_gives_back_is_made_by_one_that_saw_it_held(store):
    async def go():
        first, second = Worker(store), Worker(store)

        async def engine(request, context):
            if request.model == "broken":
                raise NotReady("the model broken cannot be served", param="model")
            await asyncio.Event().wait()

        first.engine = engine
        first.go.clear()
        await first.bring(key=Key("anna", None, None))  # for as long as it is at this one, it has a beat
        kept = await first.bring(model="broken")
        await first.turn()
        await first.running.wait()
        await second.turn()
        assert {known.job.state for known in second.runner.known} == {"running"}
        first.go.set()
        end = await second.end_of(kept)
        assert (end.state, end.job.attempts) == ("succeeded", 1)
        assert [request.model for request in second.asked] == ["broken"]

    asyncio.run(go())


def test_of_many_jobs_that_others_hold_a_look_reads_some_again_and_every_one_has_its_turn(store, monkeypatch):
    async def go():
        first, second = (Worker(store, together=99, limits=JobLimits(99, 3600, 3600)) for _ in range(2))
        first.go.clear()
        places = [(await first.bring()).place for _ in range(2 * READ_AGAIN + 1)]
        await first.turn()
        await second.turn()
        read, plain = [], store.get_if_changed
        monkeypatch.setattr(store, "get_if_changed", lambda key, etag: read.append(key) or plain(key, etag))
        for look in range(1, 4):
            await second.turn()
            assert sum(key.startswith(OPEN) for key in read) == look * READ_AGAIN
        assert {key.removeprefix(OPEN) for key in read if key.startswith(OPEN)} == set(places)
        await first.die()

    asyncio.run(go())


def test_a_job_that_never_ran_expires(store):
    async def go():
        now = time.time()
        worker = Worker(store, together=1, clock=lambda: now)
        worker.go.clear()
        await worker.bring("runs")
        await worker.turn()
        kept = await worker.bring("late", deadline_ms=1000)
        await worker.turn()
        now += 2
        end = await worker.end_of(kept)
        assert (end.state, end.error.code) == ("expired", "deadline_exceeded")
        assert [request.prompt for request in worker.asked] == ["runs"]

    asyncio.run(go())


def test_a_webhook_is_called_when_the_job_has_ended_and_by_another_worker_if_its_own_dies_first(store):
    async def go():
        hooks, others = Hooks(may=False), Hooks(may=False)
        first, second = Worker(store, webhooks=hooks), takes_the_rest(Worker(store, webhooks=others))
        kept = await first.bring(webhook="http://127.0.0.1/done")
        end = await first.end_of(kept)
        assert first.runner._delivering.keys() == {kept.place}
        assert keys(store, OPEN) != [], "its call is still owed"
        await first.die()
        others.may.set()
        for _ in range(500):
            await second.turn()
            await asyncio.sleep(0.002)
            if not keys(store, OPEN):
                break
        assert others.calls == [("http://127.0.0.1/done", kept.id, "succeeded")]
        assert hooks.calls == []
        assert second.asked == [], "nothing was made again"
        assert await second.jobs.find("anonymous", kept.id) == end
        with pytest.raises(InvalidInput, match="FLEXI_WEBHOOK_SECRET"):
            await Worker(store).bring(webhook="https://a.example/")

    asyncio.run(go())


def test_predictions_grow_with_what_waits(store):
    async def go():
        worker = Worker(store)
        assert worker.jobs.predicted(3.0, 0.5, 2.0) == 3.0 + 2.0
        await worker.bring()
        await worker.bring()
        assert worker.jobs.predicted(3.0, 0.5, 2.0) == 3.0 + 2.0 + 2 * 0.5

    asyncio.run(go())


def test_a_damaged_record_is_left_alone_and_holds_up_nobody(store, caplog):
    async def go():
        damaged = job()
        store.create(OPEN + damaged.place, b'{"id": "job-of-tomorrow"}')
        worker = Worker(store)
        assert (await worker.end_of(await worker.bring())).state == "succeeded"
        assert keys(store, OPEN) == [OPEN + damaged.place]

    asyncio.run(go())
    assert sum("left alone" in record.getMessage() for record in caplog.records) == 1


def test_all_that_jobs_leave_is_gone_when_its_time_is_over(store):
    async def go():
        now = time.time()
        worker = takes_the_rest(Worker(store, clock=lambda: now))
        await worker.end_of(await worker.bring(idempotency=("k", b"x")))
        worker.go.clear()
        await worker.bring("never done")
        await worker.turn()
        await worker.running.wait()
        await worker.die()
        own = AsyncStore(lambda: store)
        leftovers = Leftovers(own, lambda: now)
        broom = Sweeper(own, [FOLDER, OPEN, ENDED], [leftovers.sweep], lambda: now)
        assert await broom.sweep() == 0
        assert len(keys(store, "_")) == 5  # a file, an end, an open job, an idempotency key and a beat
        assert await broom.sweep() == 1, "the beat stands still"
        now += LIMITS.seconds + LIMITS.keep_seconds + GRACE + 1
        assert await broom.sweep() == 4
        assert keys(store, "") == []

    asyncio.run(go())


def test_an_idempotency_key_that_cannot_be_read_keeps_nothing_else_in_the_store(store, caplog):
    async def go():
        now = time.time()
        worker = Worker(store, clock=lambda: now)
        await worker.end_of(await worker.bring(idempotency=("k", b"x")))
        damaged = f"{IDEMPOTENT}anna/{'0' * 64}.json"
        store.create(damaged, b'{"job_id": "job-of-tomorrow"}')
        leftovers = Leftovers(AsyncStore(lambda: store), lambda: now)
        await leftovers.sweep()
        assert len(keys(store, IDEMPOTENT)) == 2
        now += LIMITS.seconds + LIMITS.keep_seconds + GRACE + 1
        await leftovers.sweep()
        assert keys(store, IDEMPOTENT) == [damaged]

    asyncio.run(go())
    assert sum("idempotency key is left alone" in record.getMessage() for record in caplog.records) == 1


def test_a_sweeper_goes_on_after_whatever_goes_wrong(store, monkeypatch, caplog):
    async def go():
        monkeypatch.setattr(sweeper, "PAUSE", 0.0)
        tries, went_on = iter([StoreUnavailable("away", param="registry"), ZeroDivisionError()]), asyncio.Event()

        async def other():
            if error := next(tries, None):
                raise error
            went_on.set()
            return 0

        task = asyncio.create_task(Sweeper(AsyncStore(lambda: store), [], [other]).follow())
        waits = asyncio.create_task(went_on.wait())
        await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        waits.cancel()
        assert went_on.is_set()

    asyncio.run(go())
    assert sum(record.exc_info is not None for record in caplog.records) == 1, "a fault of ours shows where it is"


def test_the_oldest_job_that_waits_is_neither_one_that_runs_nor_one_whose_webhook_is_owed(store):
    async def go():
        now = time.time()
        here, other = (Worker(store, together=1, webhooks=Hooks(may=False), clock=lambda: now) for _ in range(2))

        async def seen(worker):
            """Jobs that wait, jobs that run, and since when the oldest waits."""
            await worker.runner.look()
            worker.runner.known.export()
            gauges = metrics.jobs.labels("queued"), metrics.jobs.labels("running"), metrics.oldest_job_seconds
            return [gauge._value.get() for gauge in gauges]

        await here.end_of(await here.bring(webhook="http://127.0.0.1/done"))
        here.go.clear()
        await here.bring()
        await here.turn()
        now += 100
        assert [await seen(here), await seen(other)] == [[0, 2, 0]] * 2
        await here.bring()
        now += 10
        assert [await seen(here), await seen(other)] == [[1, 2, 10]] * 2

    asyncio.run(go())


def test_a_worker_that_calls_no_webhooks_says_whom_it_did_not_tell(store, caplog):
    async def go():
        brought = await Worker(store, webhooks=Hooks()).bring(webhook="http://127.0.0.1/done")
        failed = metrics.webhooks_total.labels("failed")
        before = failed._value.get()
        assert (await Worker(store).end_of(brought)).state == "succeeded"
        (record,) = (record for record in caplog.records if record.message == "a webhook was not delivered")
        assert record.fields == {"job": brought.id, "key": "anonymous", "why": "FLEXI_WEBHOOK_SECRET is not set here"}
        assert failed._value.get() == before + 1
        assert keys(store, OPEN) == []

    asyncio.run(go())
