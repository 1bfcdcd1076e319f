import os
import shutil

import numpy as np
import pytest
import torch
from image_trees import refusal
from PIL import ExifTags, Image

from acl_plugin import preset
from acl_plugin.config import DataConfig
from acl_plugin.data import datasets
from acl_plugin.data.imagenet import robustbench_images
from acl_plugin.registry import DATASETS

FEW = {"limit_test": 6, "limit_train": 20}


def test_the_test_images_are_those_of_robustbench(imagenet):
    from robustbench.data import PREPROCESSINGS
    from robustbench.loaders import CustomImageFolder

    data = datasets.load(preset("imagenet", data_dir=imagenet, **FEW).data)
    theirs = CustomImageFolder(str(imagenet / "val"), PREPROCESSINGS["Res256Crop224"])
    assert len(data.classes) == 1000
    assert data.shape == (3, 224, 224)
    for pixels, label, row in zip(data.test.floats(), data.test.labels, data.test.rows, strict=True):
        image, number, _ = theirs[int(row)]
        assert torch.equal(pixels, image)
        assert data.classes[label] == theirs.classes[number]
    assert len(theirs) == len(robustbench_images()[1]) == 5000


def test_orientation_and_transparency_have_no_effect_as_in_robustbench(imagenet, tmp_path):
    from robustbench.data import PREPROCESSINGS
    from robustbench.loaders import CustomImageFolder

    shutil.copytree(imagenet / "val", tmp_path / "val", copy_function=os.link)
    config = preset("imagenet", data_dir=tmp_path, limit_test=3).data
    rows = datasets.load(config).test.rows.tolist()
    files = [tmp_path / "val" / robustbench_images()[1][row] for row in rows]
    pixels = torch.randint(0, 256, (300, 260, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    saved = (("JPEG", pixels[..., :3], {"exif": exif}), ("PNG", pixels, {}), ("PNG", pixels[..., :2], {}))
    for file, (kind, values, options) in zip(files, saved, strict=True):
        file.unlink()  # a link to another one
        Image.fromarray(np.ascontiguousarray(values), {2: "LA", 3: "RGB", 4: "RGBA"}[values.shape[2]]).save(
            file, kind, **options
        )
    theirs = CustomImageFolder(str(tmp_path / "val"), PREPROCESSINGS["Res256Crop224"])
    for row, image in zip(rows, datasets.load(config).test.floats(), strict=True):
        assert torch.equal(image, theirs[row][0])


def test_training_images_have_the_classes_of_their_folders(imagenet):
    data = datasets.load(preset("imagenet", data_dir=imagenet, **FEW).data)
    assert data.train.labels.tolist() == data.train.rows.tolist()  # one image per class
    assert len(data.train) == 20


def test_an_evaluation_needs_the_folder_val_alone(imagenet, tmp_path):
    (tmp_path / "val").symlink_to(imagenet / "val")
    data = datasets.load(preset("imagenet", data_dir=tmp_path, limit_test=6).data)
    assert (len(data.train), len(data.test)) == (0, 6)
    assert data.fingerprints()["train"]["n"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [("val/n01440764", "n01440764/ILSVRC2012_val"), ("train/n01440764", "train/n01440764 is missing"), ("val", "val/")],
)
def test_missing_files_are_named(change, named, imagenet, tmp_path):
    shutil.copytree(imagenet, tmp_path / "copy", copy_function=lambda a, b: shutil.os.link(a, b))
    shutil.rmtree(tmp_path / "copy" / change)
    config = preset("imagenet", data_dir=tmp_path / "copy", **FEW).data
    assert named in str(refusal(datasets.load, config))


def test_settings_of_robustbench(imagenet):
    config = preset("imagenet")
    assert (config.threat.eps, config.data.image_size, config.data.resize) == ("4/255", 224, 256)
    for options in ({"image_size": 224}, {"image_size": 224, "resize": 232}, {"download": True, "resize": 256}):
        given = DataConfig(data="imagenet", data_dir=imagenet, **options)
        assert refusal(DATASETS.get("imagenet"), given).parameter == ("download" if "download" in options else "resize")
