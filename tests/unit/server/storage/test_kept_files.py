"""Files by URL: read as they were kept until their time is over, by whoever knows the id; gone after that."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from memory_store import MemoryStore

from registry.document import is_name
from registry.errors import InvalidInput, NotFound, StoreUnavailable
from server.storage.async_store import WAITING, AsyncStore
from server.storage.kept_files import FILE_ID, FOLDER, KeptFiles
from server.storage.sweeper import GRACE, Sweeper, until_of


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class AwayStore(MemoryStore):
    """Takes nothing while it is `away`."""

    away = False

    def create(self, key: str, data: bytes) -> str:
        if self.away:
            raise StoreUnavailable("away", param="registry")
        return super().create(key, data)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_a_file_is_read_as_it_was_kept_until_its_time_is_over(clock, name):
    async def go():
        files = KeptFiles(AsyncStore(MemoryStore), clock)
        store = MemoryStore()
        files = KeptFiles(AsyncStore(lambda: store), clock)
        until = int(clock()) + 60
        file_id = await files.keep(b"\x89 bytes", name, until)
        assert re.fullmatch(FILE_ID, file_id)
        kept = await files.read(file_id)
        assert (kept.data, kept.media_type, kept.until) == (b"\x89 bytes", f"image/{name}", until)
        assert await files.keep(b"\x89 bytes", name, until) != file_id, "the same bytes have another secret"
        clock.now += 60
        with pytest.raises(NotFound):
            await files.read(file_id)

    asyncio.run(go())


@pytest.mark.parametrize(
    "file_id", ["", "x", "f" * 40 + ".gif", "../" + "f" * 40 + ".png", "f" * 39 + ".png", "f" * 40 + ".png\n"]
)
def test_what_is_no_files_id_is_not_found_and_the_store_is_not_asked(clock, file_id):
    def never():
        raise AssertionError

    with pytest.raises(NotFound):
        asyncio.run(KeptFiles(AsyncStore(never), clock).read(file_id))


def test_no_model_can_have_the_folders_name():
    assert not is_name(FOLDER.rstrip("/"))


def test_a_store_that_takes_nothing_is_noticed_before_anything_is_spent_and_a_late_write_is_proof_enough(clock):
    async def go():
        store = AwayStore()
        files = KeptFiles(AsyncStore(lambda: store), clock)
        store.away = True
        with pytest.raises(StoreUnavailable):
            await files.check()
        store.away = False
        await files.check()
        assert list(store.list("")) == [], "the trial is removed"
        store.away = True
        await files.check()

    asyncio.run(go())


def test_the_sweep_removes_what_has_had_its_time_and_nothing_else_whoever_else_sweeps(clock):
    async def go():
        store = MemoryStore()
        files = KeptFiles(AsyncStore(lambda: store), clock)
        now = int(clock())
        short, long = [await files.keep(b"x", "png", now + seconds) for seconds in (10, 1000)]
        store.create("emoji64/schedules/" + f"{1:08x}" + "0" * 56 + ".json", b"{}")
        store.create(FOLDER + "readme", b"")
        sweepers = [Sweeper(AsyncStore(lambda: store), [FOLDER], clock=clock) for _ in range(2)]
        assert await sweepers[0].sweep() == 0
        clock.now = now + 10 + GRACE - 1
        assert await sweepers[0].sweep() == 0, "clocks of other servers may be behind"
        clock.now += 1
        assert sum(await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))) >= 1
        assert FOLDER + short not in set(store.list(""))
        assert {FOLDER + long, FOLDER + "readme"} < set(store.list(""))
        assert len(list(store.list("emoji64/"))) == 1

    asyncio.run(go())


def test_names_say_when_they_are_gone():
    assert until_of("0000000aff.png") == until_of("job-0000000a00.json") == 10
    assert until_of("readme") is None
    assert until_of("job-xyz") is None


def test_a_store_that_hangs_keeps_nobody_waiting_and_only_so_many_may_wait():
    async def go():
        over, store = threading.Event(), MemoryStore()
        asked = AsyncStore(lambda: (over.wait(60) and store) or store, seconds=0.2)
        try:
            waiting = [asyncio.create_task(asked.get("a")) for _ in range(WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable, match="wait for the store already"):
                await asked.get("a")
            errors = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(error) for error in errors} == {StoreUnavailable}
        finally:
            over.set()
        for _ in range(100):
            try:
                await asked.get("a")
            except NotFound:
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)
        raise AssertionError("it does not come back")

    asyncio.run(go())


def test_a_store_that_cannot_be_opened_is_away_whatever_the_reason():
    def refuse():
        raise InvalidInput("no such bucket", param="registry")

    with pytest.raises(StoreUnavailable, match="no such bucket"):
        asyncio.run(AsyncStore(refuse).list(""))
