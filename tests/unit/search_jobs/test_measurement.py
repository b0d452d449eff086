"""What ranks schedules: a mean of paired distances."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_jobs.config import Mean
from search_jobs.measurement import NONE, paired_loss, pooled

TEACHERS = np.random.default_rng(0).normal(size=(12, 5))
APART = ((TEACHERS - TEACHERS.mean(0)) ** 2).sum(1).mean()
distances = st.lists(st.floats(0.01, 100), min_size=12, max_size=12)


def at(squared: list[float]) -> np.ndarray:
    """Features so far from the teacher's."""
    return TEACHERS + np.sqrt(squared)[:, None] * np.array([0.6, 0.8, 0, 0, 0])


@given(distances)
def test_it_is_the_mean_of_the_squared_distances(squared: list[float]) -> None:
    assert paired_loss(at(squared), TEACHERS, "arithmetic") == pytest.approx(np.mean(squared))
    assert paired_loss(at(squared), TEACHERS) == pytest.approx(np.prod(squared) ** (1 / 12))


def test_one_image_that_became_another_decides_nothing() -> None:
    """One schedule is better on eleven images of twelve, and makes another image of the last one."""
    better, worse = [1.0] * 11 + [60.0], [4.0] * 12
    assert paired_loss(at(better), TEACHERS) < paired_loss(at(worse), TEACHERS)
    assert paired_loss(at(better), TEACHERS, "arithmetic") > paired_loss(at(worse), TEACHERS, "arithmetic")


def test_an_image_like_the_teachers_counts_as_one_that_nobody_could_tell_from_it() -> None:
    assert paired_loss(TEACHERS, TEACHERS) == pytest.approx(NONE * APART)
    assert paired_loss(at([0.0] + [1.0] * 11), TEACHERS) == pytest.approx((NONE * APART) ** (1 / 12))
    same = np.zeros((3, 5))
    assert paired_loss(same, same) > 0, "where the teacher's images are all one, too"


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@given(distances, st.lists(st.integers(1, 10), min_size=1, max_size=3))
def test_the_loss_on_several_samples_is_the_one_on_all_their_images(
    mean: Mean, squared: list[float], counts: list[int]
) -> None:
    ends = [0, *(end for end in accumulate(counts) if end < 12), 12]
    parts = [slice(*ends) for ends in pairwise(ends)]
    losses = [paired_loss(at(squared)[part], TEACHERS[part], mean) for part in parts]
    assert pooled(losses, [part.stop - part.start for part in parts], mean) == pytest.approx(
        paired_loss(at(squared), TEACHERS, mean)
    )
