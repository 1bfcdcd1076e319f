import math

import pytest
import torch

from acl_plugin.attacks.inputs import check_output, require_unit_range
from acl_plugin.errors import UsageError


@pytest.mark.parametrize("bad", [-0.1, 1.1, 255.0, float("nan")])
def test_images_outside_the_unit_range_are_refused(bad):
    x = torch.rand(2, 1, 4, 4)
    require_unit_range(x)
    require_unit_range(x[:0])
    x[0, 0, 0, 0] = bad
    with pytest.raises(UsageError) as error:
        require_unit_range(x, "views")
    assert (error.value.parameter, error.value.allowed) == ("views", (0, 1))
    assert ("normalize" in str(error.value)) == (not math.isnan(bad))  # not the remedy for NaN


def test_outputs_of_another_shape_are_refused():
    z = torch.rand(4, 3)
    assert check_output(z, (4, None)) is z
    for output, shape in ((z, (4,)), (z, (5, None)), (z, (4, 2)), ((z,), (4, 3)), (None, (4, 3))):
        with pytest.raises(UsageError) as error:
            check_output(output, shape)
        assert error.value.parameter == "model"
