import pytest
import torch
from image_trees import refusal, write

from acl_plugin import preset
from acl_plugin.data import datasets, loading, reading
from acl_plugin.data.form import Form
from acl_plugin.data.loading import on_disk
from acl_plugin.data.pixels import DiskPixels

IMAGES = torch.randint(0, 256, (24, 3, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    for split, part in (("train", IMAGES[:16]), ("test", IMAGES[16:])):
        for number, name in enumerate(("cat", "dog")):
            write(tmp_path / split / name, part[number::2])
    return tmp_path


def loaded(folder, **options):
    options = {"image_size": 8, "workers": 0} | options
    return datasets.load(preset("image_folder", data_dir=folder, **options).data)


@pytest.mark.parametrize("options", [{}, {"resize": 12}, {"limit_train": 6, "limit_test": 4}])
def test_a_dataset_is_the_same_in_memory_and_on_disk(options, folder):
    ram, disk = (loaded(folder, data_memory=where, **options) for where in ("ram", "disk"))
    assert isinstance(disk.train.pixels, DiskPixels)
    assert (disk.mean, disk.std, disk.classes) == (ram.mean, ram.std, ram.classes)
    assert disk.fingerprints() == ram.fingerprints()
    for one, other in ((ram.train, disk.train), (ram.test, disk.test)):
        assert torch.equal(one.floats(), other.floats())
        assert torch.equal(one.take(torch.tensor([3, 0])).floats(), other.take(torch.tensor([3, 0])).floats())
        assert torch.equal(one.labels, other.labels)


def test_auto_reads_from_disk_what_does_not_fit(folder, monkeypatch):
    assert isinstance(loaded(folder).train.pixels, torch.Tensor)
    monkeypatch.setattr(reading, "memory", lambda device: 4 * 23 * 3 * 8**2)
    assert isinstance(loaded(folder).train.pixels, DiskPixels)
    error = refusal(loaded, folder, data_memory="ram")
    assert error.parameter == "image_size"
    assert "data_memory" in str(error)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_unreadable_files_are_refused_or_skipped_and_listed(where, folder, caplog):
    broken = folder / "train" / "dog" / "003.png"
    broken.write_bytes(b"text")
    assert refusal(loaded, folder, data_memory=where).given == str(broken)
    data = loaded(folder, data_memory=where, skip_unreadable=True)
    assert len(data.train) == 15
    assert data.fingerprints()["train_unreadable"] == [str(broken)]
    assert "skipped 1 of 16 images" in caplog.text
    assert data.train.labels.tolist() == [0] * 8 + [1] * 7


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_limits_count_the_files_of_which_some_are_left_out(where, folder):
    for number in range(6):
        (folder / "train" / "dog" / f"{number:03}.png").write_bytes(b"text")
    limits = {"limit_train": 16, "limit_test": 8}
    found = loaded(folder, data_memory=where, skip_unreadable=True, **limits)
    assert (len(found.train), len(found.test)) == (10, 8)
    assert len(loaded(folder, data_memory=where, skip_unreadable=True, limit_train=4).train) <= 4
    assert "folder has 16 such images" in str(refusal(loaded, folder, skip_unreadable=True, limit_train=17))


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_readable_image_is_refused(split, where, folder):
    for path in (folder / split).rglob("*.png"):
        path.write_bytes(b"text")
    error = refusal(loaded, folder, data_memory=where, skip_unreadable=True)
    assert error.parameter == "skip_unreadable"
    assert f"none of {16 if split == 'train' else 8} images can be read" in str(error)


def test_unlabeled_images_on_disk_follow_images_in_memory(folder):
    tree = folder / "train"
    ram, disk = (
        datasets.load(preset("digits", unlabeled=tree, data_memory=where, workers=0).data).pretraining
        for where in ("ram", "disk")
    )
    assert torch.equal(ram.floats(), disk.floats())
    chosen = torch.tensor([len(ram) - 1, 0, 1300, 5])
    assert torch.equal(ram.take(chosen).floats(), disk.take(chosen).floats())
    assert ram.fingerprint(()) == disk.fingerprint(())


def test_the_number_of_workers_follows_the_cores(folder, monkeypatch):
    config = preset("image_folder", data_dir=folder, image_size=8).data
    assert not on_disk(config, 10, Form(8, 8))
    for cores, workers in ((1, 1), (4, 4), (64, 8), (None, 1)):
        monkeypatch.setattr(loading.os, "cpu_count", lambda cores=cores: cores)
        assert loaded(folder, data_memory="disk", workers=None).train.pixels.workers == workers


@pytest.mark.parametrize(
    ("data", "options", "parameter"),
    [
        ("cifar10", {"data_memory": "disk"}, "data_memory"), ("digits", {"skip_unreadable": True}, "skip_unreadable"),
        ("cifar10", {"resize": 40, "image_size": 32}, "resize"), ("image_folder", {"resize": 12}, "resize"),
        ("digits", {"workers": 2}, "workers"), ("image_folder", {"workers": -1}, "workers"),
    ],
)  # fmt: skip
def test_options_of_files_are_refused_for_arrays(data, options, parameter):
    options = {"image_size": 16} | options if data == "image_folder" else options
    assert refusal(preset, data, **options).parameter == parameter
