"""Sets of LoRAs in memory: made once for all who wait, one after the other, kept while somebody needs them, and no longer."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from registry.errors import Overloaded, Unsupported
from server.access.keys import ANONYMOUS
from server.batching.admission import Admission
from server.errors import GenerationFailed, NotReady
from server.loras.adapter_set import BASE, AdapterSet, LoraUse
from server.models.adapter_sets import AdapterSets

ROOM = 100


class Network:
    """What is made of a set; it can be referred to weakly."""


def set_of(name: str, taken: int = 40) -> AdapterSet:
    return AdapterSet.of([LoraUse(name, "0" * 64, 1.0)], taken)


A, B, C = map(set_of, "abc")


def plan(adapters: AdapterSet, macs: int = 1, background: bool = False) -> Any:
    """As much of a plan as is looked at."""
    return SimpleNamespace(
        adapters=adapters, key=ANONYMOUS, macs=macs, in_background=background, specs=[SimpleNamespace(key_seconds=None)]
    )


class Maker:
    """Makes sets; where it `holds`, not before `go` is set. made: in their order."""

    def __init__(self) -> None:
        self.made, self.holds, self.go, self.error = list[AdapterSet](), False, threading.Event(), None

    def __call__(self, adapters: AdapterSet) -> Any:
        self.made.append(adapters)
        if self.holds:
            self.go.wait(60)
        if self.error:
            raise self.error
        return Network()


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def sets(maker: Maker) -> AdapterSets:
    return AdapterSets(maker, Admission(60), ROOM)


async def settle() -> None:
    """Let everything that can go on do so, threads too."""
    for _ in range(20):
        await asyncio.sleep(0.001)


@asynccontextmanager
async def using(sets: AdapterSets, adapters: AdapterSet):
    one = plan(adapters)
    try:
        await sets.enter(one)
        yield sets.model(adapters)
    finally:
        sets.leave(one)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_requests_of_one_set_wait_for_one_making_and_later_ones_find_it(sets, maker):
    async def test() -> None:
        maker.holds, first, second = True, plan(A), plan(set_of("a"))
        waiting = [asyncio.create_task(sets.enter(one)) for one in (first, second)]
        await settle()
        assert not any(task.done() for task in waiting)
        with pytest.raises(NotReady):
            sets.model(A)
        maker.go.set()
        await asyncio.gather(*waiting)
        assert sets.model(A) is sets.model(set_of("a"))
        await sets.enter(plan(A))
        assert maker.made == [A]

    run(test)


def test_a_set_that_was_being_made_when_its_model_left_is_not_kept(sets, maker):
    """Whoever asked for it is gone, and it has the weights that were to go."""

    async def test() -> None:
        maker.holds = True
        waiting = asyncio.create_task(sets.enter(plan(A)))
        await settle()
        sets.forget()
        maker.go.set()
        with pytest.raises(NotReady):
            await waiting
        with pytest.raises(NotReady):
            sets.model(A)
        assert sets._bytes == 0

    run(test)


def test_the_model_itself_needs_nothing(sets, maker):
    run(lambda: sets.enter(plan(BASE)))
    assert maker.made == []
    assert sets.seconds(BASE) == 0


def test_the_set_used_least_recently_goes_and_its_memory_with_it(sets, maker):
    async def test() -> None:
        async with using(sets, A):
            pass
        async with using(sets, B) as model:
            gone = weakref.ref(model)
        del model
        async with using(sets, A):
            assert gone() is not None, "there is room for both"
        async with using(sets, C):
            assert sets.model(A)
        with pytest.raises(NotReady):
            sets.model(B)
        assert gone() is None
        assert maker.made == [A, B, C]

    run(test)


def test_a_set_that_a_request_needs_stays_and_who_has_no_room_waits_until_it_is_left(sets, maker):
    async def test() -> None:
        first, second, third = plan(A), plan(B), plan(C)
        await sets.enter(first)
        await sets.enter(second)
        waiting = asyncio.create_task(sets.enter(third))
        await settle()
        assert not waiting.done()
        assert sets.model(A)
        assert sets.model(B)
        sets.leave(second)
        await waiting
        assert sets.model(A)
        with pytest.raises(NotReady):
            sets.model(B)

    run(test)


def test_who_gives_up_ends_nothing_for_the_others_and_a_set_that_nobody_wants_is_not_made(sets, maker):
    async def test() -> None:
        maker.holds = True
        plans = [plan(A), plan(A), plan(B)]
        waiting = [asyncio.create_task(sets.enter(one)) for one in plans]
        await settle()
        for i in (0, 2):
            waiting[i].cancel()
        await settle()
        for i in (0, 2):
            assert waiting[i].cancelled()
            sets.leave(plans[i])
        maker.go.set()
        await waiting[1]
        await settle()
        assert maker.made == [A]
        async with using(sets, B):
            assert maker.made == [A, B]

    run(test)


def test_who_gives_up_waiting_for_room_lets_the_next_one_try(sets, maker):
    async def test() -> None:
        large, small = set_of("large", 90), set_of("small", 20)
        first = plan(A)
        await sets.enter(first)
        impatient = plan(large)
        waiting = asyncio.create_task(sets.enter(impatient))
        await settle()
        behind = asyncio.create_task(sets.enter(plan(small)))
        await settle()
        assert not behind.done()
        waiting.cancel()
        await settle()
        sets.leave(impatient)
        await behind
        assert maker.made == [A, small]

    run(test)


def test_a_client_without_room_has_background_work_give_a_set_up_and_no_client(sets, maker):
    async def test() -> None:
        client, worker, other = plan(A), plan(B, background=True), plan(C)
        await sets.enter(client)
        await sets.enter(worker)
        ends = [asyncio.create_task(sets.gives_way(one)) for one in (client, worker)]
        waiting = asyncio.create_task(sets.enter(other))
        await settle()
        assert [end.done() for end in ends] == [False, True]
        assert not waiting.done()
        assert sets.model(B), "until it has left"
        sets.leave(worker)
        await waiting
        assert sets.model(A)
        with pytest.raises(NotReady):
            sets.model(B)
        ends[0].cancel()

    run(test)


def test_background_work_without_room_waits_and_keeps_no_client_waiting_behind_it(sets, maker):
    async def test() -> None:
        small = set_of("small", 20)
        first, second, worker = plan(A), plan(B), plan(C, background=True)
        await sets.enter(first)
        await sets.enter(second)
        waiting, end = asyncio.create_task(sets.enter(worker)), asyncio.create_task(sets.gives_way(second))
        await settle()
        assert not end.done(), "a client gives nothing up"
        async with using(sets, small):
            assert not waiting.done()
        joins = asyncio.create_task(sets.enter(plan(C)))
        await settle()
        assert not joins.done()
        sets.leave(second)
        await asyncio.gather(waiting, joins)
        assert maker.made == [A, B, small, C]
        end.cancel()

    run(test)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (Unsupported("style: it overflows", param="loras"), Unsupported, "overflows"),
        (MemoryError("no memory"), GenerationFailed, "adding a:1 failed: no memory"),
    ],
)
def test_a_making_that_fails_fails_those_who_wait_for_it_and_the_next_one_tries_again(sets, maker, error, raised, said):
    async def test() -> None:
        maker.holds, maker.error = True, error
        waiting = [asyncio.create_task(sets.enter(plan(adapters))) for adapters in (A, A)]
        other = asyncio.create_task(sets.enter(plan(B)))
        await settle()
        maker.go.set()
        for task in waiting:
            with pytest.raises(raised, match=said) as caught:
                await task
            assert caught.value.param == "loras"
        with pytest.raises(raised):
            await other
        maker.error = None
        async with using(sets, A) as model:
            assert model
        assert maker.made == [A, B, A]

    run(test)


def test_waiting_requests_count_as_accepted_work(maker):
    async def test() -> None:
        admission = Admission(10)
        admission.measured(1, 1.0)
        sets, maker.holds = AdapterSets(maker, admission, ROOM), True
        waiting = asyncio.create_task(sets.enter(plan(A, macs=8)))
        await settle()
        assert admission.seconds == 8
        with pytest.raises(Overloaded):
            await sets.enter(plan(A, macs=8))
        maker.go.set()
        await waiting
        assert admission.seconds == 0

    run(test)


def test_a_borrower_never_keeps_a_set_and_is_told_when_it_goes(sets, maker):
    async def test() -> None:
        async with using(sets, A):
            borrower = asyncio.create_task(asyncio.sleep(60))
            sets.borrow(A, borrower)
        async with using(sets, B):
            await settle()
            assert not borrower.done()
        async with using(sets, C):
            await settle()
            assert borrower.cancelled()

    run(test)


def test_all_go_with_the_model(sets, maker):
    async def test() -> None:
        async with using(sets, A):
            pass
        sets.forget()
        with pytest.raises(NotReady):
            sets.model(A)
        async with using(sets, A):
            assert maker.made == [A, A]

    run(test)


def test_what_making_a_set_should_take_is_learnt_by_bytes(sets, maker):
    async def test() -> None:
        assert sets.seconds(B) == 0, "nothing is known"
        async with using(sets, A):
            assert sets.seconds(A) == 0
        assert sets.seconds(set_of("b", 80)) == pytest.approx(2 * sets.seconds(B))
        assert sets.seconds(B) > 0

    run(test)
