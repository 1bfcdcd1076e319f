"""Losses without negatives against lightly's, plain loops, and closed forms."""

import pytest
import torch

from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.losses.redundancy import barlow_twins_terms, vicreg_terms
from acl_plugin.losses.regression import spread, squared_distance_rows
from golden_inputs import noise, outputs, pairs_of_embeddings

pytestmark = pytest.mark.numeric


def barlow_twins(za, zb):
    invariance, redundancy = barlow_twins_terms(za, zb)
    return invariance + 5e-3 * redundancy


def vicreg(za, zb):
    invariance, variance, covariance = vicreg_terms(za, zb)
    return 25 * invariance + 25 * variance + covariance


def negative_cosine(za, zb):
    return cosine_distance_rows(za, zb).mean() - 1


@pytest.mark.parametrize("loss", [barlow_twins, vicreg, negative_cosine])
def test_value_and_gradient_are_lightlys(loss):
    za, zb, _ = pairs_of_embeddings()
    za.requires_grad_()
    value = loss(za, zb)
    (gradient,) = torch.autograd.grad(value, za)
    theirs = outputs("lightly")[loss.__name__]
    assert value.item() == pytest.approx(theirs["value"], abs=1e-10)
    ours = [(gradient * noise(gradient.shape, 1)).sum().item(), gradient.square().sum().item()]
    assert ours == pytest.approx(theirs["gradient"], abs=1e-10)


def test_terms_of_vicreg_are_loops():
    za, zb = (z[:4, :3] for z in pairs_of_embeddings()[:2])
    n, p = za.shape
    invariance = sum((za[i, d] - zb[i, d]) ** 2 for i in range(n) for d in range(p)) / (n * p)
    variance = covariance = 0.0
    for z in (za, zb):
        means = [sum(z[:, d]) / n for d in range(p)]

        def cov(c, d, z=z, means=means):
            return sum((z[i, c] - means[c]) * (z[i, d] - means[d]) for i in range(n)) / (n - 1)

        variance += sum(max(0.0, 1 - (cov(d, d) + 1e-4) ** 0.5) for d in range(p)) / p / 2
        covariance += sum(cov(c, d) ** 2 for c in range(p) for d in range(p) if c != d) / p
    for ours, theirs in zip(vicreg_terms(za, zb), (invariance, variance, covariance), strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(theirs))


def test_equal_embeddings_have_closed_forms():
    z = torch.full((5, 3), 0.7)
    assert [term.item() for term in barlow_twins_terms(z, z)] == pytest.approx([3, 0], abs=1e-4)
    assert [term.item() for term in vicreg_terms(z, z)] == pytest.approx([0, 0.99, 0], abs=1e-6)
    assert spread(z).item() == pytest.approx(0, abs=1e-6)


def test_the_spread_of_directions_that_cancel_is_near_one():
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    assert spread(7 * axes).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("loss", [barlow_twins, vicreg, squared_distance_rows])
def test_half_precision_is_left_under_autocast(loss):
    za, zb = (z.to(torch.bfloat16) for z in pairs_of_embeddings()[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(za, zb).dtype == torch.float32


def test_squared_distances_are_sums_over_dimensions():
    x, y = pairs_of_embeddings()[:2]
    loops = [sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in zip(x, y, strict=True)]
    torch.testing.assert_close(squared_distance_rows(x, y), torch.stack(loops))
