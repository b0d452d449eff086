"""Quotas: what a key can take in any stretch of time, and when it may come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidInput
from server.access.keys import ANONYMOUS, Key
from server.access.quota import Quotas
from server.errors import QuotaExceeded

KEY = Key("shop", 600, None)  # ten MACs a second


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


PAUSES = st.floats(0, 100)
TAKES = st.tuples(PAUSES, st.integers(1, 600))
GIFTS = st.tuples(PAUSES, st.floats(0, 1))  # a share of the last take comes back


@given(st.lists(TAKES, min_size=1, max_size=30))
def test_no_window_holds_more_than_the_bucket_and_what_fills_it(asked):
    quotas, taken = Quotas(clock := Clock()), list[tuple[float, int]]()
    for pause, macs in asked:
        clock.now += pause
        try:
            quotas.take(KEY, macs)
            taken.append((clock.now, macs))
        except QuotaExceeded:
            pass
    assert taken, "the first take found a full bucket"
    for i, (start, _) in enumerate(taken):
        for j, (end, _) in enumerate(taken[i:], i):
            assert sum(macs for _, macs in taken[i : j + 1]) <= (600 + 10 * (end - start)) * (1 + 1e-9)


@given(st.lists(st.one_of(TAKES, GIFTS), min_size=1, max_size=30))
def test_it_is_a_bucket_that_is_refilled_and_never_runs_over(steps):
    """Against the textbook's bucket: a level that grows with time."""
    quotas, level, last = Quotas(clock := Clock()), 600.0, 0
    for pause, amount in steps:
        clock.now += pause
        level = min(600.0, level + 10 * pause)
        if isinstance(amount, float):
            back, last = int(last * amount), 0
            quotas.give_back(KEY, back)
            level = min(600.0, level + back)
        elif abs(level - amount) > 1e-6:  # at the very border the rounding decides
            if amount < level:
                quotas.take(KEY, amount)
                level, last = level - amount, amount
            else:
                with pytest.raises(QuotaExceeded) as refused:
                    quotas.take(KEY, amount)
                assert refused.value.retry_after == pytest.approx((amount - level) / 10)


@given(st.integers(1, 600), st.integers(1, 600))
def test_whoever_waits_retry_after_gets_it(first, second):
    quotas = Quotas(clock := Clock())
    quotas.take(KEY, first)
    try:
        quotas.take(KEY, second)
    except QuotaExceeded as refused:
        clock.now += refused.retry_after + 1e-6
        quotas.take(KEY, second)


def test_what_waiting_cannot_help_is_refused_for_good_and_takes_nothing():
    quotas = Quotas(Clock())
    with pytest.raises(InvalidInput, match=r"^macs_per_minute: .*needs 601 MACs, and the key shop may use 600 in a minute"):
        quotas.take(KEY, 601)
    quotas.take(KEY, 600)


def test_keys_do_not_share_and_some_have_no_limit():
    quotas = Quotas(Clock())
    quotas.take(KEY, 600)
    quotas.take(Key("lab", 600, None), 600)
    for _ in range(3):
        quotas.take(ANONYMOUS, 10**18)
        quotas.give_back(ANONYMOUS, 10**18)


def test_a_refused_take_costs_nothing():
    quotas = Quotas(clock := Clock())
    quotas.take(KEY, 600)
    for _ in range(5):
        with pytest.raises(QuotaExceeded):
            quotas.take(KEY, 100)
    clock.now += 10.001
    quotas.take(KEY, 100)


def test_a_changed_limit_holds_at_once():
    quotas = Quotas(Clock())
    quotas.take(KEY, 300)  # half of a minute's worth
    quotas.take(Key("shop", 6000, None), 3000)
    with pytest.raises(QuotaExceeded):
        quotas.take(Key("shop", 6000, None), 1)


class Late(dict):
    """Other threads come in between what is read and what is written then."""

    def get(self, *arguments):
        value = super().get(*arguments)
        sleep(0.0005)
        return value

    def __getitem__(self, name):
        value = super().__getitem__(name)
        sleep(0.0005)
        return value


def test_threads_together_take_no_more_than_there_is():
    quotas = Quotas(Clock())
    quotas._full_at = Late()

    def take(_: int) -> int:
        try:
            quotas.take(KEY, 7)
        except QuotaExceeded:
            return 0
        return 7

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, range(200))) == 600 // 7 * 7


def test_all_that_threads_give_back_is_there_again():
    quotas = Quotas(Clock())
    quotas._full_at = Late()
    quotas.take(KEY, 600)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: quotas.give_back(KEY, 6), range(100)))
    quotas.take(KEY, 600)
