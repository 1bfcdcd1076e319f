import numpy as np
import pytest
import torch
from image_trees import refusal
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from acl_plugin.data.form import Form


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_images_are_resized_with_antialiasing():
    stripes = Image.fromarray(np.tile(np.uint8([[[0] * 3, [255] * 3]]), (32, 32, 1)))
    pixels = Form(8, 12).pixels(stripes)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 8, 12))
    assert (pixels.float() - 127.5).abs().max() < 20


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (300, 256), (256, 256)])
def test_a_crop_is_that_of_robustbench(size):
    from robustbench.data import PREPROCESSINGS

    image = noise(*size)
    theirs = PREPROCESSINGS["Res256Crop224"](image)
    assert torch.equal(Form(224, 224, resize=256).pixels(image).float() / 255, theirs)


def test_gray_values_and_levels():
    image = noise(9, 9)
    exact = (pil_to_tensor(image).double() * torch.tensor([0.2989, 0.587, 0.114]).double()[:, None, None]).sum(0)
    gray = Form(9, 9, channels=1).pixels(image)
    assert (gray[0].double() - exact).abs().max() <= 1
    sixteen = Form(9, 9, channels=1, levels=16).pixels(image)
    assert torch.equal(sixteen, (gray.float() * 16 / 255).round().byte())
    assert Form(9, 9, 12, 1).pixels(image).shape == Form(9, 9, 12, 1).shape == (1, 9, 9)


def test_a_size_before_the_crop_that_no_memory_holds_is_refused():
    error = refusal(Form(8, 8, resize=8192).pixels, noise(9, 20))
    assert (error.parameter, error.given) == ("resize", 8192)


def test_a_crop_that_is_larger_than_the_resized_image_is_refused():
    assert Form(8, 12, resize=12).pixels(noise(9, 20)).shape == (3, 8, 12)
    assert refusal(Form, 8, 12, resize=11).parameter == "resize"
