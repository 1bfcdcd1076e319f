"""LARS against the optimizers of the authors' codes."""

import pytest
import torch

from acl_plugin.training.lars import LARS
from golden_cases import RATES, weights_after_lars
from golden_inputs import outputs

pytestmark = pytest.mark.numeric
GOLDEN = outputs("lars")


def ours(rates):
    return weights_after_lars(lambda weights, decay: LARS(weights, lr=1.0, weight_decay=decay), RATES[rates])


@pytest.mark.parametrize("rates", RATES)
def test_lars_is_that_of_acl(rates):
    assert ours(rates) == pytest.approx(GOLDEN["acl"][rates], rel=1e-6, abs=1e-8)


def test_lars_is_that_of_rocl_at_a_constant_rate_only():
    """Its rate is outside the momentum, its ratio has 1e-8 in the divisor, and weights at 0 take a step without it."""
    assert ours("constant") == pytest.approx(GOLDEN["rocl"]["constant"], rel=1e-6, abs=1e-6)
    apart, whole = (torch.tensor(values) for values in (ours("scheduled"), GOLDEN["rocl"]["scheduled"]))
    assert (apart - whole).norm() > 0.01 * whole.norm()
