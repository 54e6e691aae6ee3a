"""Order statistics against sums done by hand."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.stats import interval_rank, summarize


def test_six_samples_are_the_least_with_an_interval() -> None:
    # The median lies outside the range of n samples with probability 2·(1/2)^n: 6.25 % of five, 3.1 % of six.
    assert interval_rank(5) == 0
    assert interval_rank(6) == 1
    assert summarize([1, 2, 3, 4, 5]).low95 is None
    six = summarize([6, 1, 5, 2, 4, 3])
    assert (six.n, six.median, six.low95, six.high95) == (6, 3.5, 1, 6)


def test_ten_samples_drop_one_at_each_end() -> None:
    # 2·(1 + 10)/2^10 = 2.1 % for the second smallest and largest; 2·(1 + 10 + 45)/2^10 = 10.9 % for the third.
    assert interval_rank(10) == 2
    ten = summarize(range(1, 11))
    assert (ten.low95, ten.high95) == (2, 9)
    assert ten.half_ratio == pytest.approx((9 - 2) / 2 / 5.5)


@given(st.integers(6, 200))
def test_the_interval_is_the_narrowest_that_holds(n: int) -> None:
    def missed(rank: int) -> float:
        return 2 * sum(comb(n, k) for k in range(rank)) / 2**n

    rank = interval_rank(n)
    assert missed(rank) <= 0.05
    assert rank == n // 2 or missed(rank + 1) > 0.05


def test_quartiles_of_a_single_sample_are_the_sample() -> None:
    one = summarize([7.0])
    assert (one.q1, one.median, one.q3, one.half_ratio) == (7.0, 7.0, 7.0, None)
