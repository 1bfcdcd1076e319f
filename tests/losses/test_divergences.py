import copy
import functools
import math

import pytest
import torch

import reference
from acl_plugin.errors import UsageError
from acl_plugin.losses.divergences import (
    DIVERGENCES,
    LOG2,
    JensenShannon,
    MaximumMeanDiscrepancy,
    SlicedWasserstein,
    create_divergence,
    median_distance,
)
from acl_plugin.theory.divergence_estimates import measure

pytestmark = pytest.mark.numeric

LEARNED = ("js", "wasserstein")


def estimate(*given, **options):
    """Between N(0, 1) and N(shift, scale^2), learned by many small samples and asked on a large one."""
    divergence, value = _estimate(*given, **options)
    return copy.deepcopy(divergence), value


@functools.cache
def _estimate(name, shift=0.0, scale=1.0, steps=200, size=1, **options):
    torch.manual_seed(0)
    divergence = create_divergence(name, size, **({"hidden": 32, "lr": 1e-2} if name in LEARNED else {}), **options)
    for _ in range(steps if name in LEARNED else 0):
        divergence.fit(torch.randn(128, size), scale * torch.randn(128, size) + shift)
    return divergence, divergence(torch.randn(2048, size), scale * torch.randn(2048, size) + shift)[1].item()


@pytest.mark.e2e
@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_js_is_near_and_not_above_that_of_two_gaussians(shift):
    _, value = estimate("js", shift)
    exact = reference.js_of_gaussians(shift)
    # below it, as spectral norm bounds the slope of the discriminator; above it only by sampling noise
    assert exact - 0.15 < value < exact + 0.02


@pytest.mark.parametrize("name", ["mmd", "sliced_wasserstein"])
def test_distances_are_exact_under_autocast_and_in_float64(name):
    torch.manual_seed(0)
    p, q = 5 + 0.02 * torch.randn(128, 64), 5 + 0.02 * torch.randn(128, 64) + 0.02
    exact, rounded = [], []
    for autocast in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rounded.append(create_divergence(name, 64)(p, q)[0].item())
    assert rounded[1] == pytest.approx(rounded[0], rel=1e-5)
    for _ in range(20):  # random directions
        exact.append(create_divergence(name, 64)(p.double(), q.double())[0])
    assert exact[0].dtype == torch.float64
    assert torch.stack(exact).mean().item() == pytest.approx(rounded[0], rel=0.15)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_mmd_of_a_cluster_far_from_0_is_that_of_the_centered_one(spread):
    torch.manual_seed(0)
    p, q, far = torch.randn(64, 8), torch.randn(64, 8) + 1, 16 * torch.ones(8)
    exact = MaximumMeanDiscrepancy(8)(p, q)[0].item()
    p, q = (far + spread * x for x in (p, q))
    p.requires_grad_()
    found = MaximumMeanDiscrepancy(8)(p, q)[0]
    assert found.item() == pytest.approx(exact, rel=0.02)
    assert torch.autograd.grad(found, p)[0].isfinite().all()


@pytest.mark.e2e
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (0.0, 2.5), (1.0, 2.0)])
def test_mmd_is_that_of_two_gaussians(shift, scale):
    torch.manual_seed(0)
    differences = []
    for _ in range(100):
        p, q = torch.randn(256, 1), scale * torch.randn(256, 1) + shift
        width = median_distance(torch.cat([p, q])).item()
        found = MaximumMeanDiscrepancy(1)(p, q)[0].item()
        differences.append(found - reference.mmd_of_gaussians(shift, scale, width))
    assert sum(differences) / 100 == pytest.approx(0, abs=0.008)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (0.0, 2.5)])
def test_sliced_wasserstein_is_the_distance_of_two_gaussians(shift, scale):
    exact = abs(shift) if scale == 1 else abs(scale - 1) * math.sqrt(2 / math.pi)
    assert estimate("sliced_wasserstein", shift, scale)[1] == pytest.approx(exact, abs=0.08)


@pytest.mark.e2e
def test_sliced_wasserstein_is_the_mean_over_directions():
    # a shift m in D dimensions: E|u . m| = ||m|| Gamma(D / 2) / (sqrt(pi) Gamma((D + 1) / 2))
    torch.manual_seed(0)
    p = torch.randn(500, 8)
    found = SlicedWasserstein(8, directions=20_000)(p, p + torch.tensor([2.0] + 7 * [0.0]))[0]
    exact = 2 * math.exp(math.lgamma(4) - math.lgamma(4.5)) / math.sqrt(math.pi)
    assert found.item() == pytest.approx(exact, abs=0.02)


@pytest.mark.e2e
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_wasserstein_is_near_and_not_above_the_distance_of_shifted_gaussians(shift):
    _, value = estimate("wasserstein", shift, steps=400)
    # LeakyReLU takes from the slope of the critic; the power iteration and the sample may add a little
    assert 0.6 * shift < value < 1.05 * shift + 0.05


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_estimates_are_about_0_for_one_distribution_and_monotone_in_the_shift(name):
    values = [estimate(name, shift)[1] for shift in (0.0, 0.5, 1.5, 4.0)]
    assert values == sorted(values)
    assert 0 <= values[0] < 0.08
    assert values[1] > values[0] + 0.01
    if name == "js":
        assert values[-1] <= LOG2


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_estimates_see_a_change_of_scale(name):
    # in eight dimensions; a discriminator on samples, and not on moments, sees it too
    assert estimate(name, 0.0, 3.0, size=8)[1] > 0.1


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_encoder_gradient_brings_the_distributions_together(name):
    divergence, _ = estimate(name, 3.0)
    torch.manual_seed(1)
    q = (torch.randn(64, 1) + 3).requires_grad_()
    loss, value = divergence(torch.randn(64, 1), q)
    (step,) = torch.autograd.grad(loss, q)
    assert step.mean() > 0  # descending moves q towards 0
    assert not value.requires_grad
    assert all(p.requires_grad and p.grad is None for p in divergence.parameters())


@pytest.mark.e2e
def test_the_non_saturating_gradient_brings_the_distributions_together():
    js, _ = estimate("js", 3.0, gradient="non_saturating")
    q = torch.full((8, 1), 3.0, requires_grad=True)
    loss, _ = js(torch.zeros(8, 1), q)
    (step,) = torch.autograd.grad(loss, q)
    assert (step > 0).all()


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_adversarial_rows_are_positive_and_larger_off_the_benign_distribution(name):
    divergence, _ = estimate(name, 3.0)
    torch.manual_seed(1)
    benign, near = torch.randn(64, 1), torch.randn(64, 1)
    rows = divergence.adversarial_rows(benign, near)
    assert rows.shape == (64,)
    assert (rows > 0).all()
    assert divergence.adversarial_rows(benign, near + 3).mean() > rows.mean()
    x = (near + 1).requires_grad_()  # an attack that follows it goes on in the same direction
    (step,) = torch.autograd.grad(divergence.adversarial_rows(benign, x).mean(), x)
    assert step.mean() > 0


def test_js_is_the_papers_formula():
    torch.manual_seed(0)
    js = JensenShannon(3).eval()
    p, q = torch.randn(5, 3), torch.randn(5, 3)
    sigmoid = torch.sigmoid
    expected = math.log(2) + sum(
        (torch.log(sigmoid(a)) + torch.log(1 - sigmoid(b))) / 2
        for a, b in zip(js.values(p), js.values(q), strict=True)
    ) / 5  # fmt: skip
    assert js(p, q)[0].item() == pytest.approx(expected.item(), abs=1e-6)


def test_mmd_and_sliced_wasserstein_are_plain_loops():
    torch.manual_seed(0)
    p, q = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    width = median_distance(torch.cat([p, q])).item()
    assert MaximumMeanDiscrepancy(3)(p, q)[0].item() == pytest.approx(reference.mmd(p, q, width), abs=1e-5)
    torch.manual_seed(1)
    found = SlicedWasserstein(3, directions=5)(p, q)[0].item()
    torch.manual_seed(1)
    directions = torch.randn(3, 5).T
    assert found == pytest.approx(reference.sliced_wasserstein(p, q, directions.double()), abs=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_state_resumes_bit_for_bit(name):
    def go_on(divergence):
        torch.manual_seed(1)
        for _ in range(3):
            divergence.fit(torch.randn(16, 2), torch.randn(16, 2) + 1)
        return divergence.state_dict()

    torch.manual_seed(0)
    one = create_divergence(name, 2, hidden=8)
    one.fit(torch.randn(16, 2), torch.randn(16, 2))
    torch.manual_seed(5)
    other = create_divergence(name, 2, hidden=8)
    other.load_state_dict(one.state_dict())
    mine, theirs = go_on(one), go_on(other)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine if isinstance(mine[k], torch.Tensor))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_fit_leaves_no_gradient_on_the_features(name):
    divergence = create_divergence(name, 2)
    features = torch.randn(4, 2, requires_grad=True)
    divergence.fit(features, features)
    assert features.grad is None


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_measure_is_a_function_of_the_seed_and_leaves_the_random_state(name):
    torch.manual_seed(0)
    p, q = torch.randn(200, 16), torch.randn(200, 16) + 1
    before = torch.get_rng_state()
    first = measure(name, p, q, seed=3)
    assert measure(name, p, q, seed=3) == first
    assert torch.equal(torch.get_rng_state(), before)
    # neither does it know the rows by heart: equal laws give about 0
    again = torch.randn(200, 16)
    assert measure(name, p, again, seed=3) < 0.25 * first


@pytest.mark.e2e
@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_measured_units(factor):
    """JS does not change with the scale of the features, Wasserstein distances change with it."""
    torch.manual_seed(0)
    p, q = torch.randn(200, 4), torch.randn(200, 4) + 1
    for name, expected in (("js", 1.0), ("mmd", 1.0), ("sliced_wasserstein", factor), ("wasserstein", factor)):
        one, other = (measure(name, x * p, x * q, seed=0) for x in (1.0, factor))
        assert other == pytest.approx(expected * one, rel=1e-2), name


def test_mistakes():
    with pytest.raises(UsageError, match="unknown divergence 'jensen'.*allowed: js, mmd"):
        create_divergence("jensen", 2)
    with pytest.raises(UsageError, match="divergence mmd.*hidden"):
        create_divergence("mmd", 2, hidden=3)
