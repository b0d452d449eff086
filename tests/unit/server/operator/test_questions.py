"""Questions that block, asked from an event loop: each once in its time, few at a time, and none waited for for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest

from registry.errors import Overloaded, StoreUnavailable
from server.operator.questions import BUSY_SECONDS, THREADS, WAITING, Questions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Question:
    """Questions how often it was asked; waits while it is told to, and fails when it is."""

    def __init__(self):
        self.asked, self.fault, self.go_on = 0, None, threading.Event()
        self.go_on.set()

    def __call__(self):
        self.asked += 1
        self.go_on.wait(60)
        if self.fault:
            raise self.fault
        return self.asked


@pytest.fixture
def question():
    made = Question()
    yield made
    made.go_on.set()


def run(questions, going):
    async def go():
        try:
            return await asyncio.wait_for(going(), 30)
        finally:
            questions.close()

    return asyncio.run(go())


def test_an_answer_is_good_for_its_time_and_until_something_changed(question):
    questions = Questions(clock=(clock := Clock()))

    async def going():
        assert [await questions.kept("q", 2.0, question) for _ in range(3)] == [1, 1, 1]
        clock.now = 1.9
        assert await questions.kept("q", 2.0, question) == 1
        clock.now = 2.0
        assert await questions.kept("q", 2.0, question) == 2
        questions.forget()
        assert await questions.kept("q", 2.0, question) == 3
        assert await questions.kept("another", 2.0, question) == 4

    run(questions, going)


def test_what_takes_long_is_asked_less_often(question):
    questions = Questions(clock=(clock := Clock()))

    def slow():
        clock.now += 10.0
        return question()

    async def going():
        assert await questions.kept("q", 2.0, slow) == 1
        clock.now += 49.0
        assert await questions.kept("q", 2.0, slow) == 1
        clock.now += 1.0
        assert await questions.kept("q", 2.0, slow) == 2

    run(questions, going)


def test_who_asks_while_it_is_asked_waits_for_the_same_answer_and_may_leave(question):
    questions = Questions()
    question.go_on.clear()

    async def going():
        asking = [asyncio.create_task(questions.kept("q", 2.0, question)) for _ in range(100)]
        while not question.asked:
            await asyncio.sleep(0.01)
        asking[0].cancel()
        question.go_on.set()
        assert set(await asyncio.gather(*asking[1:])) == {1}

    run(questions, going)
    assert question.asked == 1


def test_a_fault_is_an_answer_too(question):
    questions = Questions(clock=(clock := Clock()))
    question.fault = StoreUnavailable("away")

    async def going():
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="away"):
                await questions.kept("q", 60.0, question)
        assert question.asked == 1
        question.fault, clock.now = None, BUSY_SECONDS
        assert await questions.kept("q", 60.0, question) == 2, "a moment's fault is not told for a minute"

    run(questions, going)


def test_a_question_that_finds_its_iterator_empty_is_answered_too(question):
    """Which no future can hold, so that its question would have waited for ever."""
    questions = Questions(seconds=5.0)
    question.fault = StopIteration()

    async def going():
        for _ in range(WAITING + 1):
            with pytest.raises(RuntimeError):
                await questions.fresh(question)

    run(questions, going)


def test_only_so_many_wait_and_what_hangs_is_given_up(question):
    questions = Questions(seconds=0.2)
    question.go_on.clear()

    async def going():
        asking = [asyncio.create_task(questions.kept(i, 60.0, question)) for i in range(WAITING)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as refused:
            await questions.fresh(question)
        assert refused.value.retry_after > 0
        faults = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(fault) for fault in faults} == {StoreUnavailable}
        assert "look whether it did" in faults[0].text
        assert question.asked == THREADS
        with pytest.raises(Overloaded):
            await questions.fresh(question)
        question.go_on.set()
        while True:
            try:
                return await questions.fresh(question)
            except Overloaded:
                await asyncio.sleep(0.01)

    assert run(questions, going) > THREADS, "once the store answers again, so does it"
