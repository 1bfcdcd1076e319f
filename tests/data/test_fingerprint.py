import pytest
import torch

from acl_plugin.data.fingerprint import Fingerprint, class_differences, image_hashes, setting_differences
from acl_plugin.errors import UsageError

pytestmark = pytest.mark.numeric

CLASSES = ("cat", "dog")
GOLDEN_HASHES = [6765881130712925518, 4749148701768967544]
GOLDEN_CONTENT = "9bf7bbc66d68731e1443ee431279b58ccec2db4a42bce6d880f058a0da1a60a1"


def images(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 5), generator=generator, dtype=torch.uint8), torch.arange(n) % 2


def of(pixels, labels, classes=CLASSES, size=(3, 4, 5)):
    return Fingerprint.of(image_hashes(pixels), labels, size, classes)


def test_it_is_the_same_on_every_machine():
    """Values that were computed once: they are functions of bytes and of nothing else."""
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    assert image_hashes(pixels).tolist() == GOLDEN_HASHES
    assert of(pixels, torch.tensor([1, 0]), size=(1, 3, 4)).content == GOLDEN_CONTENT


def test_the_same_images_have_no_differences():
    pixels, labels = images()
    assert of(pixels, labels).differences(of(pixels.clone(), labels.clone()).to_dict()) == []


def changed(what):
    pixels, labels = images()
    if what == "pixel":
        pixels[3, 1, 2, 2] ^= 1
        return of(pixels, labels)
    if what == "label":
        labels[3] = 1 - labels[3]
        return of(pixels, labels)
    if what == "both":
        return of(*images(seed=1)[:1], 1 - labels)
    if what == "order":
        return of(pixels.flip(0), labels.flip(0))
    if what == "number":
        return of(pixels[:4], labels[:4])
    if what == "size":
        return of(pixels, labels, size=(3, 8, 8))
    return of(pixels, labels, classes=("cat", "wolf") if what == "class" else ("dog", "cat"))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("pixel", ["the pixels of the images"]),
        ("label", ["the labels of the images"]),
        ("both", ["the pixels and the labels of the images"]),
        ("order", ["the order of the images"]),
        ("number", ["number of images 6, there 4"]),
        ("size", ["image size 3 x 4 x 5, there 3 x 8 x 8"]),
        ("class", ["classes dog only here; wolf only there"]),
        ("class order", ["classes in another order"]),
    ],
)
def test_what_differs_is_named(what, told):
    here = of(*images())
    assert here.differences(changed(what).to_dict()) == told
    with pytest.raises(UsageError, match=r"the images are not those of before") as error:
        here.require(changed(what).to_dict(), "the images", "restore them")
    assert error.value.parameter == "data_dir"
    here.require(None, "the images", "")  # nothing was recorded


def test_swapped_labels_are_seen_whatever_the_order():
    pixels, labels = images()
    swapped = labels.clone()
    swapped[0], swapped[1] = labels[1], labels[0]
    assert of(pixels, labels).content != of(pixels, swapped).content
    assert of(pixels, labels).content == of(pixels.flip(0), labels.flip(0)).content


def test_settings_are_compared_by_name():
    here = of(*images()).to_dict()
    assert setting_differences({"eps": 0.1, "images": here}, {"eps": 0.1, "images": here}) == []
    found = setting_differences({"eps": 0.1, "images": here}, {"eps": 0.2, "images": changed("pixel").to_dict()})
    assert found == ["eps 0.1, there 0.2", "other images: the pixels of the images"]


def test_classes_of_one_side_are_named():
    assert class_differences(("a", "b"), ("b", "c")) == "a only here; c only there"
