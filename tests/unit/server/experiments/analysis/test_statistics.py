"""The report's arithmetic: against plain formulas, and by simulation that would catch an interval that is too narrow."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import false_alarms
from benchmarks.false_alarms import Traffic, lognormal, of_units
from server.experiments.analysis import statistics

SKEWED = Traffic("units unequal", of_units(0.5, lognormal(0.5)), activity=1.5, requests=4000, scale=0.1)
UNEVEN = dataclasses.replace(false_alarms.AA_TRAFFIC[5], requests=5000)
lists = st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 10)), min_size=2, max_size=30)


@settings(max_examples=100, deadline=None)
@given(lists)
def test_the_mean_is_that_of_requests_and_its_variance_the_delta_methods(units: list[tuple[int, float]]) -> None:
    n, s = np.array([count for count, _ in units]), np.array([count * value for count, value in units])
    value, variance = statistics.mean(statistics.moments(n, s))
    gradient = np.array([1 / n.mean(), -s.mean() / n.mean() ** 2])
    plain = gradient @ np.cov(s, n) @ gradient / len(units)
    assert value == pytest.approx(s.sum() / n.sum())
    assert variance == pytest.approx(plain, rel=1e-6, abs=1e-9 * value**2)


def test_without_repeats_the_variance_is_the_textbooks() -> None:
    values = np.random.default_rng(0).lognormal(size=500)
    assert statistics.mean(statistics.moments(np.ones(500), values))[1] == pytest.approx(values.var(ddof=1) / 500)


def test_the_variance_of_repeating_units_is_what_a_bootstrap_of_units_finds() -> None:
    dice = np.random.default_rng(1)
    n = dice.geometric(0.2, 400)
    s = n * dice.lognormal(0, 0.5, 400)
    drawn = [(s[pick].sum() / n[pick].sum()) for pick in dice.integers(0, 400, (2000, 400))]
    assert statistics.mean(statistics.moments(n, s))[1] == pytest.approx(np.var(drawn), rel=0.15)


def test_a_share_of_zero_is_not_certain() -> None:
    none = statistics.moments(np.ones(200), np.zeros(200))
    effect = statistics.difference(none, none, 0.01, 0.05, shares=True)
    assert effect.low < -0.01
    assert effect.high > 0.01


@pytest.mark.parametrize("variance", [1e-6, 1e-4, 0.01])
def test_the_half_width_inverts_the_mixture_of_likelihood_ratios(variance: float) -> None:
    """The mixture over N(0, τ²) of the likelihood ratio at an estimate that far from 0 is 1/α (by numerical integration)."""
    scale, alpha = 0.05, 0.05
    width = float(statistics.half_width(variance, scale, alpha))
    theta = np.linspace(-20 * scale, 20 * scale, 400_001)
    likelihoods = np.exp((theta * width - theta**2 / 2) / variance)
    assert np.trapezoid(stats.norm.pdf(theta, 0, scale) * likelihoods, theta) == pytest.approx(1 / alpha, rel=1e-3)


def test_the_interval_is_tightest_where_its_half_width_is_about_the_scale() -> None:
    variances = np.geomspace(1e-6, 1, 2000)
    widths = statistics.half_width(variances, 0.05, 0.05)
    tightest = widths[np.argmin(widths / np.sqrt(variances))]
    assert tightest == pytest.approx(0.05, rel=0.1)
    assert statistics.half_width(0.0, 0.05, 0.05) == 0
    assert np.all(widths > stats.norm.ppf(0.975) * np.sqrt(variances)), "peeking has its price"


def test_sample_ratio() -> None:
    assert statistics.sample_ratio([500, 500], [1, 1]) == 1
    assert statistics.sample_ratio([900, 100], [9, 1]) == 1
    assert statistics.sample_ratio([560, 440], [1, 1]) < statistics.MISMATCH
    both = statistics.sample_ratio(np.array([[500, 560], [500, 440]]), [1, 1])
    assert both.shape == (2,)


def test_the_moments_so_far_are_those_of_every_beginning() -> None:
    units, arms, values = dataclasses.replace(SKEWED, requests=300).stream(np.random.default_rng(2))
    moments = false_alarms.moments_so_far(units, values, arms == 1)
    for end in (1, 2, 50, 299, 300):
        in_arm = arms[:end] == 1
        n, s = np.bincount(units[:end][in_arm]), np.bincount(units[:end][in_arm], values[:end][in_arm])
        plain = statistics.moments(n[n > 0], s[n > 0])
        assert [float(sums[end - 1]) for sums in moments] == pytest.approx([float(sum_) for sum_ in plain])


@pytest.mark.parametrize("traffic", [false_alarms.AA_TRAFFIC[0], SKEWED, UNEVEN], ids=lambda traffic: traffic.name)
def test_peeking_after_every_request_keeps_the_false_alarm_rate(traffic: Traffic) -> None:
    """The full figures are `python -m benchmarks.false_alarms`'s. Ordinary intervals fail the same test."""
    experiments = 100
    alarms = false_alarms.false_alarms(traffic, experiments)
    most = stats.binom.ppf(0.999, experiments, false_alarms.ALPHA) / experiments
    assert alarms["sequence"] <= most
    assert alarms["z test"] > most, "continuous peeking is what this simulates"


def test_taking_requests_for_units_gives_false_alarms() -> None:
    assert false_alarms.false_alarms(SKEWED, 60)["by request"] > 0.2


def test_a_five_per_cent_effect_takes_about_as_many_units_as_the_guide_says() -> None:
    """947 by 2,000 experiments; 565 is what a fixed sample takes, and no sequence can need fewer."""
    needed = false_alarms.units_needed(Traffic("", lognormal(0.3), requests=4000, effect=1.05), 100)
    assert 565 < needed < 1.25 * 947


def test_an_effect_is_found_and_its_interval_covers_it() -> None:
    traffic = dataclasses.replace(false_alarms.AA_TRAFFIC[0], effect=1.1, requests=3000)
    needed = false_alarms.units_needed(traffic, 60)
    assert traffic.minimum_units <= needed < 1500
    units, arms, values = traffic.stream(np.random.default_rng(3))
    control, arm = (false_alarms.moments_so_far(units, values, arms == which) for which in (0, 1))
    effect = statistics.ratio(control, arm, 0.05, 0.05)
    difference = statistics.difference(control, arm, 0.05, 0.05)
    late = slice(500, None)
    assert np.all((effect.low[late] < 1.1) & (effect.high[late] > 1.1))
    assert np.all((difference.low[late] < 0.1) & (difference.high[late] > 0.1))
    assert math.isclose(effect.estimate[-1], arm.s[-1] / arm.n[-1] / (control.s[-1] / control.n[-1]))
