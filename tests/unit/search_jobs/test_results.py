"""What a finished search says of its tiers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_jobs.config import WORST
from search_jobs.results import held_scales


def at(scale: float, rfid: float, by_hand: float | None = 1.0) -> dict[str, object]:
    hand = {} if by_hand is None else {"strongest_baseline": {"rfid": by_hand}}
    return {"guidance": scale, "held-out": {"rfid": rfid}, **hand}


@pytest.mark.parametrize(
    ("figures", "held"),
    [
        ([], [3]),
        ([at(1, 0.5), at(2, 0.5), at(5, 0.5), at(10, 0.5)], [1, 2, 3, 5, 10]),
        ([at(1, 0.5), at(2, 1.5), at(5, 0.5), at(10, 1.5)], [3, 5]),
        ([at(1, 1.0), at(5, 1.0 + 1e-9)], [1, 3]),
        ([at(1, 7, by_hand=None), at(5, WORST, by_hand=None)], [1, 3]),
        ([at(5, WORST, by_hand=WORST)], [3]),
    ],
    ids=["none", "all", "up to the first that is worse", "as good holds", "nothing by hand", "both are ruined"],
)
def test_a_tier_holds_up_to_the_first_scale_at_which_it_is_worse_than_by_hand(figures, held) -> None:
    assert held_scales(3, figures) == held


@given(st.dictionaries(st.sampled_from([1.0, 2.0, 5.0, 7.5, 10.0]), st.booleans()))
def test_between_two_scales_that_it_holds_at_there_is_none_that_it_does_not(better: dict[float, bool]) -> None:
    held = held_scales(3.0, [at(scale, 0.5 if better[scale] else 2.0) for scale in sorted(better)])
    assert held == sorted(held)
    assert 3.0 in held
    for low, high in pairwise(held):
        assert not any(low < scale < high for scale in better)
    assert all(better[scale] for scale in held if scale != 3.0)
