import pytest
from scipy.stats import ttest_1samp, ttest_rel

from acl_plugin.theory.paired import Difference, holm, paired_difference

pytestmark = pytest.mark.numeric


def test_it_is_scipys_paired_test_over_the_common_seeds():
    a, b = {0: 80.0, 1: 82.5, 2: 81.0, 3: 79.0}, {1: 82.0, 2: 80.0, 3: 80.5, 0: 78.0, 7: 0.0}
    found = paired_difference(a, b)
    expected = ttest_rel([80.0, 82.5, 81.0, 79.0], [78.0, 82.0, 80.0, 80.5])
    interval = ttest_1samp([2.0, 0.5, 1.0, -1.5], 0).confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.mean, found.n, found.tie) == (0.5, 4, True)


def test_a_small_difference_on_every_seed_is_no_tie():
    """Supervised training beats the best row on all five seeds, inside one standard deviation."""
    best, other = {0: 88.4, 1: 84.0, 2: 86.4, 3: 88.8, 4: 85.6}, {}
    for seed, value in best.items():
        other[seed] = value - 1.8 + 0.2 * (seed - 2)
    assert not paired_difference(other, best).tie


def test_equal_and_single_results():
    assert paired_difference({0: 1.0}, {0: 2.0}) is None
    assert paired_difference({0: 1.0, 1: 2.0}, {5: 1.0}) is None
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == Difference(0.0, 0.0, 0.0, 1.0, 2)
    assert not paired_difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}).tie


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03, 0.6]) == pytest.approx([0.09, 0.04, 0.09, 0.6])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
