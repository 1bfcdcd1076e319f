import math

import pytest
import torch
import torch.nn.functional as F

import reference
from acl_plugin import losses


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_nt_xent_equals_the_papers_loop_in_value_and_gradient(rows, temperature):
    torch.manual_seed(rows)
    za, zb = (torch.randn(rows, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = reference.nt_xent(za, zb, temperature)
    value = losses.nt_xent(za, zb, temperature)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(value, (za, zb)), torch.autograd.grad(expected, (za, zb)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_nt_xent_of_equal_embeddings_is_log_2b_minus_1():
    z = torch.ones(6, 4)
    assert losses.nt_xent(z, z).item() == pytest.approx(math.log(11), abs=1e-5)
    assert losses.collapsed_nt_xent(6) == math.log(11)


def test_nt_xent_closed_form_of_orthogonal_pairs():
    # partners equal, all others orthogonal: -1/tau + log(e^(1/tau) + 2B - 2)
    z, tau = torch.eye(4), 0.5
    expected = -1 / tau + math.log(math.exp(1 / tau) + 6)
    assert losses.nt_xent(z, z, tau).item() == pytest.approx(expected, abs=1e-6)


def test_nt_xent_does_not_depend_on_scale_or_on_which_view_is_first():
    torch.manual_seed(0)
    za, zb = torch.randn(5, 3), torch.randn(5, 3)
    assert losses.nt_xent(za, zb).item() == pytest.approx(losses.nt_xent(7 * zb, 0.1 * za).item(), abs=1e-6)


def test_rows_are_positive_and_average_to_the_loss():
    torch.manual_seed(0)
    za, zb = torch.randn(5, 3), torch.randn(5, 3)
    rows = losses.nt_xent_rows(za, zb)
    assert rows.shape == (2, 5)
    assert (rows > 0).all()
    assert rows.mean().item() == pytest.approx(losses.nt_xent(za, zb).item(), abs=1e-6)


def test_joint_cross_entropy_is_nt_xent_in_value_and_gradient():
    torch.manual_seed(0)
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    logits, partners = losses.joint_logits(z, 0.5)
    loss, expected = F.cross_entropy(logits, partners), reference.nt_xent(z[:4], z[4:], 0.5)
    assert logits.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_losses_are_float32_under_autocast():
    z = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert losses.nt_xent(z, z.bfloat16()).dtype == torch.float32
