import pytest
import timm.optim.lars
import torch

import reference
from acl_plugin.training.lars import LARS

pytestmark = pytest.mark.numeric

GRADIENTS = [[0.3, -0.2, 0.1], [0.0, 0.5, 0.2], [-0.4, 0.1, 0.1], [0.2, 0.2, -0.3]]


def trained(optimizer_of, rates, start):
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_of([w])
    for gradient, lr in zip(GRADIENTS, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("start", [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("rates", [[5.0] * 4, [1.0, 5.0, 3.0, 0.1]])
def test_lars_is_the_released_rule(start, rates):
    """Also from zero weights, whose first step is a raw one."""
    ours = trained(lambda p: LARS(p, lr=1.0, weight_decay=1e-2), rates, start)
    expected = reference.lars(start, GRADIENTS, rates, decay=1e-2)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_timms_lars_is_the_same_at_a_constant_rate_only():
    def timms(parameters):
        return timm.optim.lars.Lars(parameters, lr=1.0, momentum=0.9, weight_decay=1e-2)

    def ours(parameters):
        return LARS(parameters, lr=1.0, weight_decay=1e-2)

    start = [1.0, -2.0, 0.5]
    torch.testing.assert_close(trained(timms, [5.0] * 4, start), trained(ours, [5.0] * 4, start), rtol=1e-6, atol=1e-6)
    falling = [5.0, 2.0, 1.0, 0.5]
    assert not torch.allclose(trained(timms, falling, start), trained(ours, falling, start), rtol=1e-4)


def test_lars_leaves_parameters_without_gradient_and_resumes():
    w, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    one = LARS([w, other], lr=1.0)
    w.grad = torch.ones(3)
    one.step()
    assert torch.equal(other, torch.ones(2))
    two = LARS([w, other], lr=1.0)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.state[w]["momentum_buffer"], one.state[w]["momentum_buffer"])
