import pytest
import torch

from acl_plugin.views import views

AUGMENTATIONS = ["digits", "simclr", "weak"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_views_keep_shape_and_range(shape, augment, strength):
    torch.manual_seed(0)
    x = torch.rand(16, *shape)
    y = views(x, augment, strength)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_each_image_has_its_own_randomness_from_the_global_generator(augment):
    x = torch.rand(1, 3, 32, 32).expand(8, -1, -1, -1).contiguous()
    torch.manual_seed(1)
    one = views(x, augment)
    torch.manual_seed(1)
    two = views(x, augment)
    assert torch.equal(one, two)
    assert len({tuple(v.flatten()[:50].tolist()) for v in one}) > 4


def test_strength_scales_the_change():
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    changes = [(views(x, "digits", s) - x).abs().mean().item() for s in (0.0, 0.5, 1.0)]
    assert changes[0] < 1e-6
    assert changes == sorted(changes)


def test_none_is_the_image():
    x = torch.rand(2, 1, 8, 8)
    assert views(x, "none") is x
