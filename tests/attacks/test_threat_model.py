import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError


@pytest.mark.parametrize("given", [8 / 255, "8/255", " 8/255", Fraction(8, 255), np.float64(8 / 255), str(8 / 255)])
def test_eps_is_a_number_or_a_fraction(given):
    assert ThreatModel("Linf", given) == ThreatModel("Linf", 8 / 255)
    assert type(ThreatModel("Linf", given).eps) is float
    assert ThreatModel("L2", 2).eps == 2
    assert dataclasses.replace(ThreatModel("Linf", "8/255"), eps="1/2").eps == 0.5


@pytest.mark.parametrize(
    "eps",
    [0, 0.0, -1.0, 8.0, float("nan"), float("inf"), "8/0", "eight", "", "/", "8/", "1/2/3", "nan", "inf", "-8/255",
     True, np.True_, None, 0.1 + 0j, [0.1], torch.tensor(0.1)],
)  # fmt: skip
def test_what_is_no_radius_is_refused(eps):
    with pytest.raises(UsageError) as error:
        ThreatModel("Linf", eps)
    assert error.value.parameter == "eps"
    assert error.value.given is eps


@pytest.mark.parametrize("norm", ["L1", "linf", None, 2])
def test_other_norms_are_refused(norm):
    with pytest.raises(UsageError) as error:
        ThreatModel(norm, 0.1)
    assert error.value.parameter == "norm"


def test_projection_is_into_ball_and_box():
    x = torch.tensor([0.5, 0.95, 0.0, 0.2]).view(1, 1, 2, 2)
    far = torch.tensor([0.9, 2.0, -1.0, 0.25]).view(1, 1, 2, 2)
    expected = torch.tensor([0.6, 1.0, 0.0, 0.25]).view(1, 1, 2, 2)
    torch.testing.assert_close(ThreatModel("Linf", 0.1).project(far, x), expected)
    assert (ThreatModel("L2", 0.1).project(far, x) - x).norm() <= 0.1 + 1e-6
