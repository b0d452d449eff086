"""Events in memory: bounded, in their order, and counted as they come."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from server.experiments import buffer
from server.experiments.buffer import EventBuffer
from server.experiments.events import RatingEvent


def rating(i: int) -> RatingEvent:
    return RatingEvent(time=datetime(2026, 1, 1, tzinfo=UTC), request_id=f"r{i}", rating=0.5)


def test_it_keeps_the_oldest_and_takes_no_more_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "CAPACITY", 3)
    events = EventBuffer()
    assert [events.put("s", rating(i)) for i in range(4)] == [True, True, True, False]
    assert events.oldest(2) == [("s", rating(0)), ("s", rating(1))]
    assert len(events.oldest(9)) == 3, "looking removes nothing"
    events.remove(2)
    assert events.put("s", rating(4))
    assert events.oldest(9) == [("s", rating(2)), ("s", rating(4))]


def test_those_that_came_before_it_counts_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "CAPACITY", 4)
    events, counted = EventBuffer(), list[int]()
    for i in range(2):
        events.put("s", rating(i))
    events.count_by(counted.append)
    for i in range(3):
        events.put("s", rating(i))
    assert counted == [2, 1, 1], "one that it has no room for is not accepted"
