"""Whose turn it is: the same work for everybody present, a wave's credit for deadlines, and nothing saved up while away."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from server.batching.model_turns import ModelTurns


class Sharer:
    """Of waves that all cost the same."""

    hurried = False
    task = SimpleNamespace(tier="fast", yields=False, unet_rows=2, deadline=9.0)

    def hurries(self, task, now):
        return self.hurried


class Turns(ModelTurns):
    """Has the waves counted that each was given."""

    def __init__(self):
        super().__init__()
        self.had = Counter()

    def give(self, *present):
        one = self.next({sharer: [sharer.task] for sharer in present}, 0.0)
        self.charge(one, SimpleNamespace(wave=SimpleNamespace(tasks=[one.task]), macs=100))
        self.had[one] += 1
        return one


@pytest.fixture
def turns():
    return Turns()


def test_a_model_that_was_away_has_saved_nothing_up(turns):
    one, other = Sharer(), Sharer()
    for _ in range(50):
        turns.give(one)
    turns.had.clear()
    for _ in range(20):
        turns.give(one, other)
        assert abs(turns.had[one] - turns.had[other]) <= 1


def test_a_flood_of_deadlines_is_never_more_than_its_credit_ahead(turns):
    """A wave of credit, and the one that it buys."""
    hurried, other = Sharer(), Sharer()
    hurried.hurried = True
    ahead = []
    for _ in range(40):
        turns.give(hurried, other)
        ahead.append(turns.had[hurried] - turns.had[other])
    assert max(ahead) == 2
    assert turns.had[other] >= 19


def test_a_deadline_goes_first_though_its_model_had_a_wave_more(turns):
    hurried, other = Sharer(), Sharer()
    assert turns.give(hurried, other) is hurried, "the first of two that had nothing"
    waiting = {other: [other.task], hurried: [hurried.task]}
    assert turns.next(waiting, 0.0) is other
    hurried.hurried = True
    assert turns.next(waiting, 0.0) is hurried


def test_idle_images_stand_back_for_background_work_of_other_models_too(turns):
    idle, background = Sharer(), Sharer()
    idle.task = SimpleNamespace(tier="shadow", yields=True, stands_back=True, unet_rows=2, deadline=9.0)
    background.task = SimpleNamespace(tier="fast", yields=True, stands_back=False, unet_rows=2, deadline=9.0)
    for _ in range(10):
        turns.give(idle, background)
    assert turns.had == {background: 10}
    assert turns.give(idle) is idle
