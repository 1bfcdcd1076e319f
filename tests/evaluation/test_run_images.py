"""An evaluation of a run's own dataset refuses files that changed since the training; other datasets are evaluated."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.run_images import check_run_images
from acl_plugin.probing.protocols import probe
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

CLASSES = ("ape", "bee", "cat", "dog")
COUNTS = {"train": 5, "test": 4}


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def fill(root, seed=0):
    for c, name in enumerate(CLASSES):
        for split, count in COUNTS.items():
            for i in range(count):
                picture(root / split / name / f"{i}.png", seed + 100 * c + 10 * (split == "test") + i)
    return root


def settings(root, **options):
    return preset("image_folder", data_dir=root, **{"image_size": 8} | options)


@pytest.fixture
def run(tmp_path):
    """A run folder with the record of its images, as a pretraining leaves it."""
    run = RunDir(tmp_path / "run")
    config = settings(fill(tmp_path / "images"))
    run.start(config)
    run.record_images(datasets.load(config.data))
    return run


def check(run, **options):
    config = settings(run.path.parent / "images")
    config = config.replace(**options)
    check_run_images(run, config, datasets.load(config.data))


def swap(root):
    (root / "train").rename(root / "other")
    (root / "test").rename(root / "train")
    (root / "other").rename(root / "test")


def move_class(root):
    (root / "test" / "ape" / "0.png").rename(root / "test" / "bee" / "9.png")


def replace_training(root):
    picture(root / "train" / "cat" / "1.png", 4321)


def replace_test(root):
    picture(root / "test" / "cat" / "1.png", 4321)


def add_test(root):
    shutil.copy(root / "train" / "cat" / "1.png", root / "test" / "cat" / "9.png")


CHANGES = {
    swap: "are the training images of", move_class: "the test images of image_folder are not those of before",
    replace_training: "the training images of image_folder are not those", replace_test: "other the pixels of the imag",
    add_test: "number of images 17, there 16",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_of_a_runs_dataset_are_refused(change, run):
    check(run)
    change(run.path.parent / "images")
    with pytest.raises(UsageError, match=CHANGES[change]) as error:
        check(run)
    assert error.value.parameter == "data_dir"
    assert "\n" not in str(error.value)


def test_an_evaluation_needs_no_training_images(run, tmp_path):
    """As of ImageNet, whose folder ``train`` may be gone."""
    config = settings(tmp_path / "images")
    data = datasets.load(config.data)
    alone = replace(data, train=data.train.take(torch.zeros(0, dtype=torch.int64)))
    check_run_images(run, config, alone)
    with pytest.raises(UsageError, match="not those of before"):
        check_run_images(run, config, replace(alone, test=data.test.take(torch.arange(15))))


@pytest.mark.parametrize("change", [swap, replace_training])
def test_a_limit_of_test_images_hides_no_other_training_images(change, run):
    check(run, limit_test=8)
    change(run.path.parent / "images")
    with pytest.raises(UsageError):
        check(run, limit_test=8)


def test_a_link_to_the_folder_is_the_folder(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "images")
    replace_test(tmp_path / "images")
    with pytest.raises(UsageError, match="not those of before"):
        check(run, data_dir=tmp_path / "link")


def test_training_images_in_another_folder_are_no_test_images(run, tmp_path):
    swap(fill(tmp_path / "moved"))
    with pytest.raises(UsageError, match="are the training images of"):
        check(run, data_dir=tmp_path / "moved")


@pytest.mark.parametrize("change", [None, replace_test, move_class, add_test])
def test_test_images_of_another_folder_are_evaluated(change, run, tmp_path, capsys):
    """With the same training images the folder may be the run's own, moved, so that a change is named."""
    fill(tmp_path / "moved")
    if change is not None:
        change(tmp_path / "moved")
    check(run, data_dir=tmp_path / "moved")
    assert ("test images are not those recorded in" in capsys.readouterr().err) == (change is not None)
    check(run, data_dir=fill(tmp_path / "own", seed=1000))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [{"limit_test": 8}, {"limit_train": 8}, {"limit_test": 16}])
def test_limits_are_allowed(options, run):
    check(run, **options)


def test_other_datasets_and_mapped_classes_are_allowed(run, tmp_path):
    check_run_images(run, preset("digits"), datasets.load(preset("digits").data))
    for split in COUNTS:
        (tmp_path / "images" / split / "dog").rename(tmp_path / "images" / split / "wolf")
    check(run, class_map={"wolf": "dog"})
    with pytest.raises(UsageError, match="classes wolf only here; dog only there"):
        check(run)


def test_a_run_without_a_record_is_evaluated_and_a_damaged_record_named(run, tmp_path):
    swap(tmp_path / "images")
    for content in ("[]", json.dumps({"train": 5}), json.dumps({"test": []})):
        run.images_file.write_text(content)
        with pytest.raises(UsageError, match="images.json is damaged; delete it"):
            check(run)
    run.images_file.unlink()
    check(run)


@pytest.mark.e2e
@pytest.mark.parametrize("suite", ["autoattack", "standard", "corruptions", "embedding"])
def test_every_suite_refuses_swapped_folders(suite, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "there")
    run = RunDir(tmp_path / "there" / "run")
    swap(tmp_path / "there" / "images")
    text = run.config_file.read_text().replace(str(trained), str(tmp_path / "there"))
    run.config_file.write_text(text)
    before = sorted(run.path.rglob("*.json"))
    assert main(["evaluate", str(run.path), "--suite", suite, "--name", "swapped"]) == 2
    assert "the test images of image_folder are the training images of" in capsys.readouterr().err
    assert sorted(run.path.rglob("*.json")) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, and a run with a classifier of them."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"image_size": 8, "augment": "digits", "objective": "simclr", "limit_train": None, "limit_test": None}
    options |= {"epochs": 1, "probe_protocol": "slf_exact", "backbone": TINY["backbone"]}
    fitting = {k: v for k, v in TINY.items() if not k.startswith("probe")}
    config = settings(fill(folder / "images"), **fitting | options)
    probe(pretrain(config, folder / "run"), config, torch.device("cpu"))
    return folder
