"""Distributions of random views against those of the authors' transforms: shares, means and quantiles of many draws.

Tolerances are five times the sampling error of both sides, beside the rounding of theirs to bytes and whole pixels.
"""

import math

import pytest
import torch

from acl_plugin.data import augment
from acl_plugin.data.augment import Augmentation
from golden_inputs import outputs
from golden_views import IMAGES, QUANTILES, SIDE, statistics, summary_of

pytestmark = [pytest.mark.numeric, pytest.mark.e2e]

GOLDEN = outputs("views")
DRAWN = 1000
OURS = {
    "acl": (Augmentation("simclr"), 1.0),
    "dynacl": (Augmentation("simclr", interpolation="bilinear"), 1.0),
    "dynacl at strength 0.5": (Augmentation("simclr", interpolation="bilinear"), 0.5),
    "advcl": (Augmentation("simclr", crop_scale=0.2, interpolation="bilinear"), 1.0),
    "rocl": (Augmentation("simclr", crop_scale=0.08, interpolation="bilinear", color_first=True), 1.0),
    "gsa_rsl": (Augmentation("simclr", crop_scale=0.2, interpolation="bilinear", blur=0.5), 1.0),
    "weak": (Augmentation("weak", padding=4), 1.0),
    "profeat": (Augmentation("autoaugment", padding=4), 1.0),
}
ROUNDING = {"area of the crop": 0.03, "aspect of the crop": 0.06, "middle of the crop": 0.02}
"""Of whole pixels: torchvision's boxes begin and end at one. The others round to bytes."""


def crops(pipeline, n):
    """Area, logarithm of the aspect, and middle of the boxes, as shares of the side."""
    layer = next(layer for layer in pipeline if type(layer).__name__ == "RandomResizedCrop")
    box = layer.generate_parameters(torch.Size((n, 3, SIDE, SIDE)))["src"].double()
    width, height = (box[:, 2] - box[:, 0] + 1).unbind(1)
    return {
        "area of the crop": width * height / SIDE**2,
        "aspect of the crop": (width / height).log(),
        "middle of the crop": (box[:, 0, 0] + width / 2) / SIDE,
    }


def drawn(name, n):
    augmentation, strength = OURS[name]
    torch.manual_seed(0)
    views = {
        kind: augment.views(image().expand(n, 3, SIDE, SIDE).contiguous(), augmentation, strength)
        for kind, image in IMAGES.items()
    }
    found = statistics(views)
    if augmentation.name == "simclr":
        found["values"] |= crops(augment._pipeline(augmentation, (3, SIDE, SIDE), strength), n)
    return found


def differences(name):
    """What differs by more than the sampling error, and by how much."""
    n = DRAWN // 2 if OURS[name][0].name == "autoaugment" else DRAWN  # image by image
    found, theirs = drawn(name, n), GOLDEN[name]
    error = 5 * math.sqrt(1 / n + 1 / theirs["n"])
    apart = {}
    for share, value in theirs["shares"].items():
        if abs(found["shares"][share] - value) > error * math.sqrt(max(value * (1 - value), 1 / n)):
            apart[share] = (found["shares"][share], value)
    assert found["values"].keys() == theirs["values"].keys()
    for statistic, values in found["values"].items():
        expected, ours = theirs["values"][statistic], summary_of(values)
        rounding = ROUNDING.get(statistic, 1.5 / 255)
        for moment in ("mean", "sd"):
            if abs(ours[moment] - expected[moment]) > error * expected["sd"] + rounding / 2:
                apart[f"{moment}, {statistic}"] = (ours[moment], expected[moment])
        for share, value in zip(QUANTILES, expected["quantiles"], strict=True):
            below, upto = ((values < value - rounding).double().mean(), (values <= value + rounding).double().mean())
            slack = error * math.sqrt(share * (1 - share))
            if not (below <= share + slack and upto >= share - slack):
                apart[f"quantile {share}, {statistic}"] = (values.quantile(share).item(), value)
    return apart


def test_every_distribution_of_the_authors_has_one_of_ours():
    assert GOLDEN.keys() - {"n"} == OURS.keys()


@pytest.mark.parametrize("name", OURS)
def test_views_are_distributed_as_those_of_the_authors_code(name):
    assert differences(name) == {}
