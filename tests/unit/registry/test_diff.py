"""A difference tells every step, segment and figure that differs, and no other."""

from __future__ import annotations

import json

from hypothesis import given
from schedule_strategies import schedule, schedules

from registry.diff import Difference
from registry.schedule import Fidelity, Schedule, Segment

A, B = schedule(5), schedule(3, 6)


@given(schedules(), schedules())
def test_nothing_differs_just_where_the_digest_is_the_same(a: Schedule, b: Schedule) -> None:
    for one, other in ((a, b), (a, a)):
        difference = Difference(one, other)
        same = not difference.fields and difference.segments == []
        assert same == (one.digest == other.digest)
        json.dumps(difference.document())


@given(schedules(), schedules())
def test_the_other_way_round_is_the_same_difference(a: Schedule, b: Schedule) -> None:
    here, back = Difference(a, b), Difference(b, a)
    assert here.steps == back.steps
    assert here.fields == {name: pair[::-1] for name, pair in back.fields.items()}
    assert here.figures == {name: pair[::-1] for name, pair in back.figures.items()}


def test_tells_the_segments_that_differ_and_their_steps() -> None:
    other = A.model_copy(update={"segments": (*A.segments[:2], Segment(partial=(5,), branch=2), *A.segments[3:])})
    difference = Difference(A, other)
    assert difference.steps == [25]
    (change,) = difference.segments or []
    assert (change.segment, change.first, change.last) == (2, 20, 29)
    assert (change.a, change.b) == (A.segments[2], other.segments[2])
    assert difference.fields == {}


def test_what_does_not_line_up_is_not_compared() -> None:
    shorter, coarser = schedule(steps=5), A.model_copy(update={"segments": (Segment(),)})
    assert Difference(A, shorter).steps is Difference(A, shorter).segments is None
    assert Difference(A, shorter).fields["solver.teacher_steps"] == (50, 5)
    assert Difference(A, coarser).steps
    assert Difference(A, coarser).segments is None


def test_figures_of_one_side_only() -> None:
    measured = B.model_copy(update={"fidelity": Fidelity(rfid=1.5, psnr=20.0, images=9)})
    figures = Difference(A, measured).figures
    assert figures["rFID"] == (None, 1.5)
    assert figures["partial steps"] == (5, 10)
    assert "relative cost" not in figures
