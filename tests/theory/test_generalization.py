import math

import pytest
import torch

from acl_plugin.theory.generalization import (
    empirical_bernstein,
    gibbs_bound,
    inverse_kl,
    pac_bayes_kl,
    solved_gibbs_probe,
)
from acl_plugin.theory.intervals import bootstrap

pytestmark = pytest.mark.numeric


def test_empirical_bernstein_is_its_formula_and_clips():
    losses = torch.tensor([0.0, 1.0, 5.0, 0.5])
    v = torch.tensor([0.0, 1.0, 2.0, 0.5]).double().var().item()
    log = math.log(4 / 0.05)
    half = math.sqrt(2 * v * log / 4) + 7 * 2 * log / 9
    assert half > 2
    assert empirical_bernstein(losses, 2.0) == (0.0, 2.0)
    many = losses.repeat(1000)
    v = torch.tensor([0.0, 1.0, 2.0, 0.5]).repeat(1000).double().var().item()
    half = math.sqrt(2 * v * log / 4000) + 7 * 2 * log / (3 * 3999)
    assert empirical_bernstein(many, 2.0) == (pytest.approx(0.875 - half), pytest.approx(0.875 + half))


def test_empirical_bernstein_contains_the_mean_in_at_least_95_of_100_samples():
    torch.manual_seed(0)
    inside = 0
    for _ in range(200):
        low, high = empirical_bernstein(torch.rand(100).square(), 1.0)
        inside += low <= 1 / 3 <= high
    assert inside >= 190


@pytest.mark.parametrize(("error", "divergence"), [(0.0, 0.1), (0.2, 0.05), (0.5, 1.0), (1.0, 0.3)])
def test_inverse_kl_inverts(error, divergence):
    p = inverse_kl(error, divergence)
    if p < 1 - 1e-9:
        kl = sum(q * math.log(q / r) for q, r in ((error, p), (1 - error, 1 - p)) if q > 0)
        assert kl == pytest.approx(divergence, rel=1e-6)
    assert p >= error


def test_the_prototype_is_not_vacuous():
    assert round(pac_bayes_kl(0.074, 278, 1297), 3) == 0.356
    assert pac_bayes_kl(0.074, 278, 1297) > pac_bayes_kl(0.074, 278, 5000) > 0.074


def test_a_gibbs_probe_errs_on_the_rows_no_more_than_stated():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    z = torch.nn.functional.one_hot(labels, 3) * 3.0 + torch.randn(300, 3)
    weight = torch.eye(3)
    found = gibbs_bound(weight, z, labels, sigmas=(0.3,))
    drawn = [((z @ (weight + 0.3 * torch.randn(3, 3)).T).argmax(1) != labels).double().mean() for _ in range(500)]
    assert sum(drawn) / 500 <= found.error <= 2 * sum(drawn) / 500
    assert found.divergence == pytest.approx(3 / (2 * 0.09))
    assert found.bound == pac_bayes_kl(found.error, found.divergence, 300, 0.05)


def test_the_bound_of_a_solved_probe_covers_fresh_rows():
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    z, fresh, other = (torch.nn.functional.one_hot(labels, 4) * 4.0 + torch.randn(400, 4) for _ in range(3))
    found = solved_gibbs_probe(z, labels, other, 4)
    nearest = ((fresh - 2).argmax(1) != labels).double().mean().item()
    assert nearest < found.bound < 0.5
    assert found.n == 400


def test_bootstrap_of_a_mean_is_the_normal_interval():
    torch.manual_seed(0)
    rows = torch.randn(400)
    low, high = bootstrap(rows)
    half = 1.96 * (rows.std() / 20).item()
    assert (low, high) == (
        pytest.approx(rows.mean().item() - half, abs=0.02),
        pytest.approx(rows.mean().item() + half, abs=0.02),
    )


def test_a_row_of_zeros_counts_as_an_error():
    """All its scores are equal, so that its class is that of the first."""
    labels = torch.arange(300) % 3
    z = torch.nn.functional.one_hot(labels, 3) * 9.0
    all_right = gibbs_bound(torch.eye(3), z, labels, sigmas=(0.01,))
    z[:30] = 0
    found = gibbs_bound(torch.eye(3), z, labels, sigmas=(0.01,))
    assert all_right.error == pytest.approx(0, abs=1e-9)
    assert found.error == pytest.approx(0.1)
