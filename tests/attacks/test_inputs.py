import math

import pytest
import torch

from acl_plugin.attacks.inputs import check_output, require_bright, require_unit_range
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


@pytest.mark.parametrize("bad", [1.001, 1.0000001192092896, 1.02, -0.001, -1.5e-8, -0.03])
def test_slightly_larger_values_are_shown_and_clamped(bad):
    x = torch.rand(2, 1, 4, 4)
    x[0, 0, 0, 0] = bad
    with pytest.raises(UsageError, match=r"allowed is \[0, 1\]; call clamp\(0, 1\) on them") as error:
        require_unit_range(x)
    shown = [float(number) for number in str(error.value).split("[")[1].split("]")[0].split(",")]
    assert not (shown[0] >= 0 and shown[1] <= 1)  # the digits show what is wrong


def test_images_that_were_divided_twice_are_refused():
    pixels = torch.randint(0, 256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    pixels[2] = 255
    require_bright(pixels / 255)
    require_bright(pixels / 255 / 100)
    require_bright(pixels * 0)
    require_bright(pixels[:0])
    for twice in (pixels / 255 / 255, pixels.double() / 255**2, (pixels / 255 / 255).half()):
        with pytest.raises(UsageError, match="divide 8-bit images by 255 once") as error:
            require_bright(twice)
        assert error.value.parameter == "images"
        assert "\n" not in str(error.value)


def test_outputs_of_another_shape_are_refused():
    z = torch.rand(4, 3)
    assert check_output(z, (4, None)) is z
    for output, shape in ((z, (4,)), (z, (5, None)), (z, (4, 2)), ((z,), (4, 3)), (None, (4, 3))):
        with pytest.raises(UsageError) as error:
            check_output(output, shape)
        assert error.value.parameter == "model"
