import math

import pytest
import torch

from acl_plugin.data import augment
from acl_plugin.data.augment import WEAK, Augmentation, high_pass, views

pytestmark = pytest.mark.numeric

AUGMENTATIONS = ["digits", "simclr", "autoaugment", "weak", "shift"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_views_keep_shape_and_range(shape, name, strength):
    torch.manual_seed(0)
    x = torch.rand(16, *shape)
    y = views(x, Augmentation(name), strength)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_image_has_its_own_randomness_from_the_global_generator(name):
    x = torch.rand(1, 3, 32, 32).expand(8, -1, -1, -1).contiguous()
    torch.manual_seed(1)
    one = views(x, Augmentation(name))
    torch.manual_seed(1)
    two = views(x, Augmentation(name))
    assert torch.equal(one, two)
    assert len({tuple(v.flatten()[:50].tolist()) for v in one}) > 4


def test_strength_scales_the_change():
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    changes = [(views(x, Augmentation("digits"), s) - x).abs().mean().item() for s in (0.0, 0.5, 1.0)]
    assert changes[0] < 1e-6
    assert changes == sorted(changes)


def test_none_is_the_image():
    x = torch.rand(2, 1, 8, 8)
    assert views(x, Augmentation("none")) is views(x, "none") is x


def test_every_strong_augmentation_has_a_weak_one_and_digits_are_not_mirrored():
    assert set(WEAK) == {"digits", "simclr", "autoaugment"}
    x = torch.zeros(64, 1, 8, 8)
    x[:, :, :, :4] = 1
    torch.manual_seed(0)
    assert (views(x, Augmentation(WEAK["digits"]))[:, 0, 3, 2] == 1).all()
    assert not (views(x, Augmentation(WEAK["simclr"]))[:, 0, 3, 2] == 1).all()


@pytest.mark.parametrize(("height", "width"), [(64, 8), (8, 64), (48, 16), (33, 17), (16, 16), (8, 9)])
@pytest.mark.parametrize("name", ["shift", "weak", "autoaugment"])
def test_each_side_is_padded_by_an_eighth_of_itself(name, height, width):
    """A view never loses more than an eighth of a side, and all offsets up to it occur."""
    torch.manual_seed(0)
    v = views(torch.full((400, 3, height, width), 0.5), name, strength=0.0)[:, 0] > 0  # without AutoAugment's policy
    lost = height - v.any(2).sum(1), width - v.any(1).sum(1)
    for pixels, side in zip(lost, (height, width), strict=True):
        assert set(pixels.tolist()) == set(range(max(1, side // 8) + 1))


@pytest.mark.parametrize("side", [8, 32, 33])
def test_views_of_squares_are_those_of_one_padding_for_all_sides(side):
    x = torch.rand(16, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    one = views(x, "weak")
    torch.manual_seed(1)
    assert torch.equal(one, views(x, Augmentation("weak", padding=max(1, side // 8))))


def test_high_frequencies_are_a_plain_fourier_sum():
    """Against the sum over frequencies of at least a quarter of the side, written out."""
    side = 6
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    expected = torch.zeros(side, side, dtype=torch.complex128)
    grid = torch.arange(side, dtype=torch.float64)
    for u in range(-side // 2, side // 2):
        for v in range(-side // 2, side // 2):
            if math.hypot(u, v) < side / 4:
                continue
            wave = torch.exp(2j * math.pi * (u * grid.view(-1, 1) + v * grid) / side)
            expected += (x[0, 0] * wave.conj()).sum() * wave / side**2
    torch.testing.assert_close(high_pass(x.float())[0, 0].double(), expected.real, atol=1e-6, rtol=1e-5)


def test_high_frequencies_of_flat_and_checkered_images():
    flat, checkered = torch.full((2, 3, 32, 32), 0.7), torch.arange(32).view(-1, 1).add(torch.arange(32)) % 2
    assert high_pass(flat).abs().max() < 1e-6
    checkered = checkered.float().expand(2, 3, 32, 32)
    torch.testing.assert_close(high_pass(checkered), checkered - 0.5, atol=1e-6, rtol=1e-5)


@pytest.mark.e2e
def test_blur_and_crop_are_options_of_the_strong_view():
    torch.manual_seed(0)
    x = torch.rand(256, 3, 32, 32)

    def roughness(images):
        return (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))

    def drawn(**options):
        torch.manual_seed(1)
        return roughness(views(x, Augmentation("simclr", **options)))

    assert torch.equal(drawn(), drawn(crop_scale=0.1, blur=0.0))
    whole = drawn(crop_scale=0.99)  # an enlarged crop of noise is smoother
    assert whole.mean() > drawn(crop_scale=0.2).mean() > drawn(crop_scale=0.01).mean()
    blurred = (drawn(crop_scale=0.99, blur=1.0) < 0.9 * whole).float().mean()
    half = (drawn(crop_scale=0.99, blur=0.5) < 0.9 * whole).float().mean()
    assert blurred > 0.8
    assert 0.35 * blurred < half < 0.65 * blurred
    assert views(torch.rand(2, 3, 64, 64), Augmentation("simclr", blur=1.0)).shape == (2, 3, 64, 64)


def drawn(name, x, seed=1, strength=1.0, **options):
    torch.manual_seed(seed)
    return views(x, Augmentation(name, **options), strength)


def test_colors_change_before_the_crop_or_after_it():
    moved, colored = ["RandomResizedCrop", "RandomHorizontalFlip"], ["ColorJitter", "RandomGrayscale"]
    for first, expected in ((False, moved + colored), (True, colored + moved[::-1])):
        layers = augment._pipeline(Augmentation("simclr", color_first=first), (3, 16, 16), 1.0)
        assert [type(layer).__name__ for layer in layers] == expected


def test_a_bilinear_crop_overshoots_nowhere():
    """Bicubic weights are negative for some pixels, bilinear ones for none."""
    x = torch.zeros(64, 1, 16, 16)
    x[..., 4:12] = 0.5
    bicubic, bilinear = (drawn("simclr", x, crop_scale=0.3, interpolation=how) for how in ("bicubic", "bilinear"))
    assert bicubic.max() > 0.5 + 1e-3
    assert bilinear.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("name", ["shift", "weak", "autoaugment"])
@pytest.mark.parametrize(("padding", "shifts"), [(None, 4), (1, 1), (0, 0)])
def test_a_weak_view_is_moved_by_at_most_the_padding(name, padding, shifts):
    x = torch.zeros(256, 3, 32, 32)
    x[:, :, 16, 16] = x[:, :, 16, 15] = 1  # in the middle, also when mirrored
    rows = drawn(name, x, strength=0.0, padding=padding).amax((1, 3)).argmax(1)
    assert set((rows - 16).tolist()) == set(range(-shifts, shifts + 1))


def test_autoaugment_draws_a_policy_for_each_image_and_strength_is_its_share():
    x = torch.rand(1, 3, 32, 32).expand(200, -1, -1, -1).contiguous()
    changed = [(drawn("autoaugment", x, strength=s, padding=0) != x).flatten(1).any(1) for s in (0.0, 1.0)]
    bytes_ = (x * 255).round() / 255
    mirrored = (drawn("autoaugment", x, strength=0.0, padding=0) != x).flatten(1).any(1).float().mean()
    assert 0.3 < mirrored < 0.7
    assert changed[1].all()  # every image is rounded to bytes
    moved = drawn("autoaugment", x, padding=0)
    different = {tuple((m * 255).round().to(torch.uint8).flatten()[::7].tolist()) for m in moved}
    assert len(different) > 50
    assert (moved == bytes_).flatten(1).all(1).float().mean() < 0.5
