"""A registered dataset with a fault in each of its fields, one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from acl_plugin.cli.main import main
from acl_plugin.config import DataConfig
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS


def images(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 2, torch.arange(count), levels=255)


def made(train=None, test=None, **changed):
    """A dataset with other fields in itself, or in the images of a split."""
    splits = {"train": replace(images(), **(train or {})), "test": replace(images(6, 1), **(test or {}))}
    return replace(DataSet("own", **splits, classes=("a", "b"), mean=(0.5,), std=(0.25,)), **changed)


def fails():
    raise ZeroDivisionError("no images")


FAULTS = {
    "raises": (fails, "ZeroDivisionError: no images"),
    "another type": (lambda: (images(), images()), "its function returns tuple; allowed is an acl_plugin"),
    "floats": (lambda: made({"pixels": images().floats()}), r"train.pixels are \(8, 1, 8, 8\) torch.float32"),
    "no channels": (lambda: made({"pixels": images().pixels[:, 0]}), r"train.pixels are \(8, 8, 8\) torch.uint8"),
    "arrays": (lambda: made({"pixels": images().pixels.numpy()}), "train.pixels are ndarray"),
    "levels 1": (lambda: made({"levels": 1}), "train.pixels are up to 255; allowed is at most its levels, 1"),
    "levels 0": (lambda: made(test={"levels": 0}), "test.levels is 0; allowed is a whole number from 1 to 255"),
    "float levels": (lambda: made({"levels": 255.0}), "train.levels is 255.0"),
    "other levels": (lambda: made({"levels": 255, "pixels": images().pixels // 2}, {"levels": 127,
                     "pixels": images(6).pixels // 4}), "test.levels is 127; allowed is 255"),
    "label -1": (lambda: made(test={"labels": torch.tensor([-1, 0, 1, 0, 1, 0])}), "test.labels are from -1 to 1"),
    "labels from 1": (lambda: made({"labels": images().labels + 1}), "train.labels are from 1 to 2; .* 0 to 1"),
    "int32 labels": (lambda: made({"labels": images().labels.int()}), r"train.labels are \(8,\) torch.int32"),
    "float labels": (lambda: made(test={"labels": images(6).labels.float()}), "test.labels are .* torch.float32"),
    "array labels": (lambda: made({"labels": images().labels.numpy()}), "train.labels are ndarray"),
    "fewer labels": (lambda: made({"labels": torch.arange(7) % 2}), r"train.labels are \(7,\) torch.int64"),
    "equal rows": (lambda: made({"rows": torch.zeros(8, dtype=torch.int64)}), "train.rows are equal for some"),
    "float rows": (lambda: made({"rows": torch.arange(8.0)}), r"train.rows are \(8,\) torch.float32"),
    "another size": (lambda: made(test={"pixels": images(6).pixels[..., :7]}), r"test images are \(1, 8, 7\)"),
    "other channels": (lambda: made(test={"pixels": images(6).pixels.repeat(1, 3, 1, 1)}), r"are \(3, 8, 8\)"),
    "no images": (lambda: replace(made(), test=None), "its test is NoneType"),
    "list of classes": (lambda: made(classes=["a", "b"]), "classes are .*; allowed is a tuple of different texts"),
    "equal classes": (lambda: made(classes=("a", "a")), "classes are"),
    "numbers as classes": (lambda: made(classes=(0, 1)), "classes are"),
    "one class": (lambda: made(classes=("a",)), "it has one class; allowed is two classes or more, or none"),
    "mean of 3": (lambda: made(mean=(0.5,) * 3), "mean is .*; allowed is a tuple of 1 numbers from 0 to 1"),
    "mean of pixels": (lambda: made(mean=(128.0,)), "mean is"),
    "std 0": (lambda: made(std=(0.0,)), "std is .*above 0"),
    "std nan": (lambda: made(std=(float("nan"),)), "std is"),
    "a number as std": (lambda: made(std=0.25), "std is 0.25"),
    "empty": (lambda: replace(made(), train=images(0), test=images(0)), "it has no images"),
    "unlabeled images": (lambda: made(unlabeled=images()), "its unlabeled is Images; allowed is a function"),
}  # fmt: skip


@pytest.fixture
def registered():
    """Register a function under the name ``own``."""
    yield lambda build: DATASETS.register("own")(lambda config: build())
    DATASETS.unregister("own")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_dataset_is_named_before_anything_is_written(name, registered, tmp_path, capsys):
    build, message = FAULTS[name]
    registered(build)
    with pytest.raises(UsageError, match=f"dataset 'own' is broken: .*{message}") as error:
        datasets.load(DataConfig(data="own"))
    assert error.value.parameter == "data"
    assert main(["run", "--data", "own", "--eps", "0.1", "--norm", "Linf", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is broken" in line
    assert not (tmp_path / "run").exists()


def unlabeled(**changed):
    return replace(images(5, 2), labels=torch.full((5,), -1), **changed)


UNLABELED_FAULTS = {
    "raises": (fails, "its unlabeled images: ZeroDivisionError: no images"),
    "another type": (lambda: [1], "its unlabeled is list"),
    "labels": (lambda: images(5, 2), "its unlabeled.labels are from 0 to 1; allowed is -1 for all"),
    "floats": (lambda: unlabeled(pixels=images(5).floats()), "its unlabeled.pixels are .* torch.float32"),
    "levels": (lambda: unlabeled(pixels=images(5).pixels // 4, levels=127), "its unlabeled.levels is 127; .* 255"),
    "size": (lambda: unlabeled(pixels=images(5).pixels[..., :7]), r"its unlabeled images are \(1, 8, 7\)"),
    "rows": (lambda: unlabeled(rows=torch.zeros(5, dtype=torch.int64)), "its unlabeled.rows are equal"),
}


@pytest.mark.parametrize("name", UNLABELED_FAULTS)
def test_faulty_unlabeled_images_are_named_before_anything_is_written(name, registered, tmp_path, capsys):
    build, message = UNLABELED_FAULTS[name]
    registered(lambda: made(unlabeled=build))
    with pytest.raises(UsageError, match=f"dataset 'own' is broken: {message}"):
        _ = datasets.load(DataConfig(data="own")).pretraining
    assert main(["pretrain", "--data", "own", "--eps", "0.1", "--norm", "Linf", "--out", str(tmp_path / "run")]) == 2
    assert "is broken" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sound_unlabeled_images_are_joined(registered):
    registered(lambda: made(unlabeled=unlabeled))
    data = datasets.load(DataConfig(data="own"))
    assert torch.equal(data.pretraining.pixels[8:], unlabeled().pixels)


def test_test_images_in_the_pretraining_are_warned_of(registered, caplog):
    test = made().test
    registered(lambda: made(unlabeled=lambda: replace(test, labels=torch.full((6,), -1))))
    data = datasets.load(DataConfig(data="own"))
    assert not caplog.records
    assert len(data.pretraining) == 14
    assert "6 of 6 test images are unlabeled images of the pretraining as well" in caplog.text


def test_numbers_and_names_of_numpy_become_those_of_python(registered):
    registered(lambda: made(mean=(np.float32(0.5),), std=(np.float64(0.25),), classes=(np.str_("a"), np.str_("b"))))
    data = datasets.load(DataConfig(data="own"))
    assert [type(each) for each in (*data.mean, *data.std, *data.classes)] == [float, float, str, str]


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 7, 64), (1, 64, 1)])
def test_images_that_are_too_small_for_networks_are_refused_unless_they_are_resized(shape, registered):
    def small():
        splits = [replace(images(n, n), pixels=torch.randint(0, 256, (n, *shape)).to(torch.uint8)) for n in (8, 6)]
        return replace(made(), train=splits[0], test=splits[1], mean=(0.5,) * shape[0], std=(0.2,) * shape[0])

    registered(small)
    with pytest.raises(UsageError, match="images are .*; allowed are 8 x 8 pixels or more: add `image_size`"):
        datasets.load(DataConfig(data="own"))
    assert datasets.load(DataConfig(data="own", image_size=8)).shape == (shape[0], 8, 8)


def test_a_sound_dataset_is_loaded(registered):
    for build in (
        made,
        lambda: made(test={name: getattr(images(0), name) for name in ("pixels", "labels", "rows", "hashes")}),
    ):
        registered(build)
        assert len(datasets.load(DataConfig(data="own")).train) == 8
        DATASETS.unregister("own")


def test_one_without_labels_is_loaded(registered):
    none = [{"labels": torch.full((count,), -1)} for count in (8, 6)]
    registered(lambda: made(*none, classes=()))
    assert datasets.load(DataConfig(data="own")).classes == ()


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_without_labels_in_a_dataset_with_classes_are_refused(split, registered):
    none = {"labels": torch.full((8 if split == "train" else 6,), -1)}
    registered(lambda: made(**{split: none}))
    with pytest.raises(UsageError, match=f"its {split}.labels are from -1 to -1; allowed is 0 to 1"):
        datasets.load(DataConfig(data="own"))
