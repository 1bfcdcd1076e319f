"""Sharpness against closed forms, and unchanged by a rescaling that changes no output."""

import math

import pytest
import torch
from torch import nn

from acl_plugin.losses.sharpness import sharpness
from acl_plugin.theory.weight_sharpness import adaptive_sharpness, noise_sharpness

pytestmark = pytest.mark.numeric


def test_the_worst_loss_of_a_linear_function_is_in_closed_form():
    theta = nn.Parameter(torch.tensor([2.0, -1.0, 0.0]))
    slopes = torch.tensor([1.0, 3.0, 5.0])
    before = theta.detach().clone()
    plain, worst = adaptive_sharpness([theta], lambda: (slopes * theta).sum().view(1), rho=0.5, steps=20)
    assert plain.item() == pytest.approx(-1.0)
    assert worst.item() == pytest.approx(-1.0 + 0.5 * math.sqrt(2.0**2 + 3.0**2), rel=1e-3)
    assert torch.equal(theta.detach(), before)


def test_the_expected_loss_of_a_square_is_in_closed_form():
    theta = nn.Parameter(torch.tensor([2.0]))
    found = noise_sharpness([theta], lambda: theta.square(), 0.5, torch.Generator().manual_seed(0), draws=4000)
    assert found.item() == pytest.approx(4 * (1 + 0.25), rel=0.05)
    assert theta.item() == 2.0


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_neither_changes_when_convolutions_before_batchnorm_are_rescaled(factor):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    norm.running_var.uniform_(0.5, 2)

    def rows():
        return nn.functional.cross_entropy(net(x), y, reduction="none")

    def both():
        _, worst = adaptive_sharpness(list(net.parameters()), rows, 0.5)
        noisy = noise_sharpness(list(net.parameters()), rows, 0.1, torch.Generator().manual_seed(1))
        return worst, noisy, sharpness(list(net.parameters()), lambda: rows().mean(), 0.5)[1]

    outputs, before = net(x), both()
    with torch.no_grad():
        net[0].weight.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.copy_(factor**2 * (norm.running_var + norm.eps) - norm.eps)
    after = both()
    assert torch.allclose(net(x), outputs, atol=1e-4)
    for one, other in zip(before[:2], after[:2], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    assert abs(after[2] - before[2]) > 0.02 * before[2]  # in a ball of fixed radius
