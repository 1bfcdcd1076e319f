"""Rank correlations against scipy, their intervals against the truth, and partial ones against plain loops."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from acl_plugin.errors import UsageError
from acl_plugin.theory.correlation import FEWEST, Correlation, spearman

pytestmark = pytest.mark.numeric


def points(n=40, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x.tolist(), (x + noise * rng.normal(size=n)).round(1).tolist()  # with ties


@pytest.mark.e2e
def test_it_is_scipys_and_inside_its_interval():
    x, y = points()
    found = spearman(x, y)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    assert found.n == 40
    assert spearman(x, y) == found  # a function of its seed


@pytest.mark.e2e
def test_the_interval_covers_the_truth_about_as_often_as_it_states():
    # for a bivariate normal law with correlation r, Spearman's is 6 / pi asin(r / 2)
    r = 1 / np.sqrt(2)
    truth = 6 / np.pi * np.arcsin(r / 2)
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=60)
        found = spearman(x, r * x + np.sqrt(1 - r**2) * rng.normal(size=60), draws=200)
        inside += found.low <= truth <= found.high
    assert 85 <= inside <= 100


@pytest.mark.e2e
def test_groups_are_drawn_as_a_whole():
    # ten runs of eight equal checkpoints are ten points
    x, y = points(10, seed=2)
    wide = spearman(np.repeat(x, 8).tolist(), np.repeat(y, 8).tolist(), [i // 8 for i in range(80)])
    narrow = spearman(np.repeat(x, 8).tolist(), np.repeat(y, 8).tolist())
    assert wide.rho == narrow.rho
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert wide.high - wide.low == pytest.approx((one := spearman(x, y)).high - one.low, abs=0.15)


@pytest.mark.e2e
def test_fewer_than_five_groups_have_no_interval():
    # one run of eight checkpoints says nothing about another run
    alone = spearman(range(8), range(8), ["run"] * 8)
    assert (alone.rho, alone.low, alone.high) == (pytest.approx(1.0), None, None)
    four, five = ([i % count for i in range(20)] for count in (4, 5))
    x, y = points(20)
    assert spearman(x, y, four).low is None
    assert spearman(x, y, five).low is not None


def test_partial_correlation_is_of_ranks_without_the_means_of_the_strata():
    x, y = points(24, seed=3)
    strata = [("row", i % 4) for i in range(24)]
    y = [value + 10 * (i % 4) for i, value in enumerate(y)]
    from scipy.stats import pearsonr, rankdata

    ranks = [rankdata(x), rankdata(y)]
    for of in ranks:
        for stratum in range(4):
            of[stratum::4] = of[stratum::4] - of[stratum::4].mean()
    found = spearman(x, y, strata=strata)
    assert found.partial == pytest.approx(pearsonr(*ranks).statistic)


def test_what_only_separates_strata_has_no_partial_correlation():
    x = [float(i // 6) for i in range(24)]
    y = [10 * (i // 6) + (i * 7 % 6) for i in range(24)]
    found = spearman(x, y, strata=[i // 6 for i in range(24)])
    assert found.rho > 0.9
    assert found.partial is None


@pytest.mark.e2e
def test_perfect_order_and_nothing_to_state():
    one = pytest.approx(1.0)
    assert spearman(range(FEWEST), range(FEWEST)) == Correlation(one, one, one, None, FEWEST)
    assert spearman(range(FEWEST - 1), range(FEWEST - 1)) is None
    assert spearman([1.0] * 9, range(9)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_raises_no_correlation(value):
    assert spearman([1, 2, 3, 4, value], [1, 2, 3, 4, 5]) is None
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, value]) is None


@pytest.mark.parametrize("name", ["y", "groups", "strata"])
def test_sequences_of_different_lengths_are_refused(name):
    given = {"y": [1, 3, 2, 4, 6, 5], name: list("abcde") if name != "y" else [1, 2]}
    with pytest.raises(UsageError, match="of the length of x, 6") as refused:
        spearman([1, 2, 3, 4, 5, 6], **given)
    assert refused.value.parameter == name
