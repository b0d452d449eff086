"""The bootstrap in pairs: it holds what is true about as often as it says, and is surer than two intervals by themselves."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binomtest

from evaluation import frechet_distance, gaussian
from evaluation.paired import Chosen, Estimate, Resampled, resampled, swap_test

DIMENSIONS, IMAGES = 4, 300
Sample = NDArray[np.float64]


def distances(images: Sample, teacher: Sample, resamples: int = 60) -> Resampled:
    """The Fréchet distance of a sample to the teacher's images of the same noise."""
    figures = resampled(lambda chosen: {"rfid": frechet_distance(images[chosen], teacher[chosen])}, len(images), resamples)
    return figures["rfid"]


def drawn(rng: np.random.Generator, *factors: float) -> tuple[Sample, list[Sample]]:
    """A teacher's sample, and one of each schedule: a factor of it, and noise of its own.

    The teacher's distribution is a standard Gaussian, so a schedule's has the covariance (factor² + 0.01) I and its Fréchet
    distance is d (√(factor² + 0.01) − 1)².
    """
    teacher = rng.standard_normal((IMAGES, DIMENSIONS))
    return teacher, [factor * teacher + 0.1 * rng.standard_normal(teacher.shape) for factor in factors]


def true_distance(factor: float) -> float:
    return float(DIMENSIONS * (np.sqrt(factor**2 + 0.01) - 1) ** 2)


def test_a_schedule_against_its_equal_is_a_ratio_of_one_and_a_difference_of_nothing() -> None:
    teacher, (ours, _) = drawn(np.random.default_rng(0), 1.1, 1.2)
    one, same = distances(ours, teacher), distances(ours.copy(), teacher)
    assert one.over(same) == Estimate(1.0, 1.0, 1.0)
    assert one.less(same) == Estimate(0.0, 0.0, 0.0)


def test_the_interval_of_a_ratio_holds_the_true_one_about_as_often_as_it_says() -> None:
    rng, held, trials = np.random.default_rng(0), 0, 40
    for _ in range(trials):
        teacher, (ours, rival) = drawn(rng, 1.15, 1.2)
        ratio = distances(ours, teacher).over(distances(rival, teacher))
        assert ratio is not None
        held += ratio.holds(true_distance(1.15) / true_distance(1.2))
    assert 0.85 <= held / trials <= 1


def test_pairs_tell_apart_what_two_intervals_beside_each_other_do_not() -> None:
    teacher, (ours, rival) = drawn(np.random.default_rng(1), 1.15, 1.16)
    one, other = distances(ours, teacher), distances(rival, teacher)
    assert one.estimate().high > other.estimate().low, "the intervals overlap"
    ratio = one.over(other)
    assert ratio is not None
    assert ratio.high < 1
    assert ratio.value == pytest.approx(one.value / other.value)


@pytest.mark.parametrize("statistic", [np.mean, np.std, np.median])
def test_all_schedules_of_a_sample_are_resampled_alike(statistic: Callable[[Sample], float]) -> None:
    values = np.random.default_rng(2).standard_normal(50)
    one = resampled(lambda chosen: {"figure": float(statistic(values[chosen]))}, 50)["figure"]
    shifted = resampled(lambda chosen: {"figure": float(statistic(values[chosen] + 3))}, 50)["figure"]
    difference = shifted.less(one)
    assert difference.high - difference.low < 1e-12, "what all images have in common is no doubt"


def test_an_estimate_without_bias_is_the_percentiles_and_one_with_bias_is_moved() -> None:
    figures = np.random.default_rng(3).standard_normal(2000)
    plain = Resampled(float(figures.mean()), figures).estimate()
    assert (plain.low, plain.high) == pytest.approx(tuple(np.quantile(figures, (0.025, 0.975))))
    moved = Resampled(plain.value, figures + 5).estimate()
    assert (moved.low, moved.high) == pytest.approx((plain.low, plain.high))


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (3, 0), (6, 0), (9, 1), (5, 4)])
def test_of_won_and_lost_images_it_is_the_sign_test(lost: int, won: int) -> None:
    less = np.zeros(100)
    less[:lost], less[lost : lost + won] = -1, 1
    scores = np.concatenate([less, np.zeros(100)])
    p = swap_test(lambda own, other: float(scores[own].mean() - scores[other].mean()), 100, 4000)
    assert p == pytest.approx(binomtest(won, lost + won).pvalue, abs=0.03)


def test_equal_schedules_differ_about_as_often_as_it_says_and_unequal_ones_mostly() -> None:
    """In a distance to a third sample of as many images as would make the bootstrap blind: hardly more than dimensions."""
    rng, count, dimensions = np.random.default_rng(5), 40, 24
    real = gaussian(rng.standard_normal((5000, dimensions)))

    def found(shift: float) -> bool:
        shared = rng.standard_normal((count, dimensions))
        own, other = (shared + 0.3 * rng.standard_normal(shared.shape) + move for move in (shift, 0.0))

        images = np.concatenate([own, other])

        def difference(first: Chosen, second: Chosen) -> float:
            return frechet_distance(gaussian(images[first]), real) - frechet_distance(gaussian(images[second]), real)

        return swap_test(difference, count, 60) < 0.05

    assert np.mean([found(0.0) for _ in range(60)]) <= 0.15
    assert np.mean([found(0.25) for _ in range(20)]) >= 0.6


@pytest.mark.parametrize("lost", [1, 2])
def test_a_few_lost_of_a_hundred_are_no_difference_whichever_they_are(lost: int) -> None:
    """An interval that excluded 0 would tell one image from another."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        won = np.ones(100)
        won[rng.choice(100, lost, replace=False)] = 0
        less = resampled(lambda chosen, won=won: {"score": float(won[chosen].mean() - 1)}, 100)["score"].estimate()
        assert less.value == pytest.approx(-lost / 100)
        assert less.high >= -1e-12


@given(values=arrays(float, 30, elements=st.floats(-10, 10)))
def test_of_a_mean_resamples_show_no_bias(values: Sample) -> None:
    mean = resampled(lambda chosen: {"mean": float(values[chosen].mean())}, len(values), 20)["mean"]
    assert mean.drawn.mean() == pytest.approx(mean.value, abs=1e-9)


def test_there_is_no_ratio_to_nothing() -> None:
    nothing, something = Resampled(0.0, np.zeros(5)), Resampled(1.0, np.ones(5))
    assert something.over(nothing) is None
    assert nothing.over(something) is None
