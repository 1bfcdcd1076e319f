import pytest
import torch

from acl_plugin.sharpness import ascend


def test_moves_by_rho_along_the_gradient_and_restores_exactly():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    gradients = [torch.randn(3, 2), torch.randn(4)]
    before = [p.detach().clone() for p in parameters]
    with ascend(parameters, gradients, 0.3):
        moved = torch.cat([(p - b).flatten() for p, b in zip(parameters, before, strict=True)])
    along = torch.cat([g.flatten() for g in gradients])
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-5)
    torch.testing.assert_close(moved / 0.3, along / along.norm(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_worst_case_of_a_linear_loss():
    # max over ||d|| <= rho of w . (theta + d) is w . theta + rho ||w||
    theta, w = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.tensor([3.0, 4.0])
    with ascend([theta], [w], 0.1):
        assert (w @ theta).item() == pytest.approx(3 - 8 + 0.1 * 5, abs=1e-5)


def test_restores_after_an_exception_and_takes_missing_and_zero_gradients():
    p, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    with pytest.raises(KeyError), ascend([p, unused], [torch.zeros(2), None], 1.0):
        assert torch.equal(p, torch.ones(2))
        raise KeyError
    assert torch.equal(p, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))
