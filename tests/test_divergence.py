import math

import pytest
import torch

import reference
from acl_plugin.divergence import LOG2, JensenShannon


def estimate(shift, steps=150, gradient="reversed"):
    torch.manual_seed(0)
    js = JensenShannon(1, hidden=32, lr=1e-2, gradient=gradient)
    for _ in range(steps):
        js.fit(torch.randn(128, 1), torch.randn(128, 1) + shift)
    return js, js(torch.randn(4096, 1), torch.randn(4096, 1) + shift)[1].item()


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_estimate_is_near_and_not_above_the_divergence_of_two_gaussians(shift):
    _, value = estimate(shift)
    exact = reference.js_of_gaussians(shift)
    # below it, as spectral norm bounds the slope of the discriminator; above it only by sampling noise
    assert exact - 0.15 < value < exact + 0.02


def test_estimate_is_monotone_in_the_shift_and_clipped():
    values = [estimate(shift)[1] for shift in (0.0, 0.5, 1.5, 4.0)]
    assert values == sorted(values)
    assert 0 <= values[0] < 0.02
    assert values[-1] <= LOG2


def test_forward_is_the_papers_formula():
    torch.manual_seed(0)
    js = JensenShannon(3).eval()
    p, q = torch.randn(5, 3), torch.randn(5, 3)
    sigmoid = torch.sigmoid
    expected = math.log(2) + sum(
        (torch.log(sigmoid(a)) + torch.log(1 - sigmoid(b))) / 2
        for a, b in zip(js.logits(p), js.logits(q), strict=True)
    ) / 5  # fmt: skip
    assert js(p, q)[0].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("gradient", ["reversed", "non_saturating"])
def test_the_encoder_gradient_brings_the_laws_together(gradient):
    js, _ = estimate(3.0, gradient=gradient)
    q = torch.full((8, 1), 3.0, requires_grad=True)
    loss, _ = js(torch.zeros(8, 1), q)
    (step,) = torch.autograd.grad(loss, q)
    assert (step > 0).all()  # descending moves q towards 0
    assert all(p.requires_grad and p.grad is None for p in js.discriminator.parameters())


def test_adversarial_rows_are_positive_and_larger_off_the_benign_law():
    js, _ = estimate(3.0)
    near, far = js.adversarial_rows(torch.tensor([[0.0], [3.0]]))
    assert 0 < near < far


def test_state_resumes_bit_for_bit():
    def go_on(js):
        torch.manual_seed(1)
        for _ in range(3):
            js.fit(torch.randn(16, 2), torch.randn(16, 2) + 1)
        return js.state_dict()

    torch.manual_seed(0)
    js = JensenShannon(2, hidden=8)
    js.fit(torch.randn(16, 2), torch.randn(16, 2))
    torch.manual_seed(5)
    other = JensenShannon(2, hidden=8)
    other.load_state_dict(js.state_dict())
    one, two = go_on(js), go_on(other)
    assert all(torch.equal(one[k], two[k]) for k in one if isinstance(one[k], torch.Tensor))


def test_fit_leaves_no_gradient_on_the_features():
    js = JensenShannon(2)
    features = torch.randn(4, 2, requires_grad=True)
    js.fit(features, features)
    assert features.grad is None
