import pytest

from acl_plugin.probing.automatic_rate import CHECKS, checks, stalls
from golden_inputs import outputs

CASES = outputs("probes")["autolora"]["rates"]


@pytest.mark.parametrize("case", CASES)
def test_the_rates_are_those_of_the_authors_code(case):
    rate, weights, rates, begins = 0.1, 0, [], []
    for epoch, _ in enumerate(case["scores"]):
        rates.append(rate)
        begins.append(weights)
        done = case["scores"][: epoch + 1]
        weights = epoch + 1
        if stalls(done, 50):
            rate /= 2
            weights = 1 + done.index(max(done))
    assert rates == pytest.approx(case["rates"], rel=1e-6)
    assert begins == case["begins from"]


def test_a_score_that_only_rises_keeps_the_rate():
    assert not any(stalls(range(n), 50) for n in range(1, 51))


@pytest.mark.parametrize("epochs", [1, 2, 7, 25, 50, 100])
def test_checks_are_at_the_same_shares_of_any_number_of_epochs(epochs):
    found = checks(epochs)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] <= epochs
    assert all(min(abs(each - share * epochs / 50) for each in found) < 1 for share in CHECKS)
