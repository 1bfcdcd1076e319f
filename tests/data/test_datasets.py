from pathlib import Path

import image_trees
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from acl_plugin import config
from acl_plugin.data import batches, datasets, reading
from acl_plugin.data.images import UNLABELED
from acl_plugin.data.subsets import subset_rows
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS


def test_digits_are_split_once_and_for_all_and_stratified():
    one, two = (
        datasets.load(config.preset("digits").data),
        datasets.load(config.preset("digits", seed=5).data),
    )
    assert (len(one.train), len(one.test)) == (1297, 500)
    assert torch.equal(one.test.rows, two.test.rows)
    assert not set(one.train.rows.tolist()) & set(one.test.rows.tolist())
    counts = torch.bincount(one.test.labels)
    assert counts.min() >= 48
    assert counts.max() <= 52


def test_digits_rows_are_scikit_learns_and_pixels_are_sixteenths():
    test, bunch = datasets.load(config.preset("digits").data).test, load_digits()
    row = test.rows[7].item()
    assert test.labels[7] == bunch.target[row]
    np.testing.assert_array_equal(test.floats(7, 8)[0, 0].numpy(), (bunch.images[row] / 16).astype("float32"))


def test_limits_take_images_that_keep_the_shares_of_the_classes(capsys):
    full, cut = (
        datasets.load(config.preset("digits").data),
        datasets.load(config.preset("digits", limit_train=20, limit_test=3).data),
    )
    assert torch.equal(cut.train.rows, full.train.rows[subset_rows(full.train.labels, 20)])
    assert cut.train.labels.bincount().tolist() == [2] * 10
    assert len(cut.test) == 3
    assert "in the 3 test images 7 of 10 classes are missing" in capsys.readouterr().err
    with pytest.raises(UsageError, match="digits has 1297 such images") as error:
        datasets.load(config.preset("digits", limit_train=2000).data)
    assert (error.value.parameter, error.value.given) == ("limit_train", 2000)


def test_batches_are_a_function_of_seed_and_epoch():
    images = datasets.load(config.preset("digits", limit_train=20).data).train

    def rows(**options):
        settings = {"batch_size": 6, "seed": 1, "epoch": 2} | options
        return [r.tolist() for _, _, r in batches.ShuffledBatches(images, **settings)]

    assert rows() == rows()
    assert rows() != rows(epoch=3)
    assert rows() != rows(seed=2)
    assert [len(r) for r in rows()] == [6, 6, 6]
    assert len({r for batch in rows() for r in batch}) == 18


def test_ranks_share_out_each_step():
    images = datasets.load(config.preset("digits", limit_train=20).data).train
    whole = [r.tolist() for _, _, r in batches.ShuffledBatches(images, 8, 0, 0)]
    parts = [[r.tolist() for _, _, r in batches.ShuffledBatches(images, 4, 0, 0, rank, 2)] for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_cifar10_from_torchvisions_layout(fabricated):
    loaded = datasets.load(config.preset("cifar10", data_dir=fabricated).data)
    assert loaded.shape == (3, 32, 32)
    assert (len(loaded.train), len(loaded.test)) == (50, 10)
    assert loaded.classes[3] == "class3"
    assert torch.equal(loaded.test.rows, torch.arange(10))


def test_missing_and_damaged_files_are_named(fabricated):
    batch = fabricated / "cifar-10-batches-py" / "data_batch_3"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:100])  # a truncated pickle
    with pytest.raises(UsageError, match="data_batch_3 is damaged"):
        datasets.load(config.preset("cifar10", data_dir=fabricated).data)
    batch.unlink()
    with pytest.raises(UsageError, match=r"data_batch_3 is missing: `data_dir` is the folder that holds cifar-10-batc"):
        datasets.load(config.preset("cifar10", data_dir=fabricated).data)


def test_no_folder():
    with pytest.raises(UsageError, match="cifar10 needs `data_dir` FOLDER; add `download`"):
        datasets.load(config.preset("cifar10").data)
    with pytest.raises(UsageError, match="no such folder; `download`"):
        datasets.load(config.preset("cifar100", data_dir=Path("/nowhere")).data)


def test_stl10_cifar100_and_image_folders(fabricated_others):
    stl10 = datasets.load(config.preset("stl10", data_dir=fabricated_others).data)
    assert stl10.shape == (3, 96, 96)
    assert (len(stl10.train), len(stl10.test)) == (20, 10)
    assert stl10.train.labels.tolist() == 2 * list(range(10))
    assert stl10.classes[1] == "bird"
    small = datasets.load(config.preset("stl10", data_dir=fabricated_others, image_size=32).data).train
    assert small.pixels.shape == (20, 3, 32, 32)
    area = stl10.train.floats().unflatten(2, (32, 3)).unflatten(4, (32, 3)).mean((3, 5))
    assert (small.floats() - area).abs().mean() < 0.1  # antialiased: near the mean of what a pixel covers
    cifar100 = datasets.load(config.preset("cifar100", data_dir=fabricated_others).data)
    assert (len(cifar100.train), len(cifar100.test), len(cifar100.classes)) == (100, 10, 100)
    folder = datasets.load(config.preset("image_folder", data_dir=fabricated_others).data)
    assert folder.shape == (3, 32, 32)
    assert folder.classes == ("cat", "dog")
    assert folder.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(torch.tensor(folder.mean), folder.train.floats().mean((0, 2, 3)))


def refusal(**options):
    with pytest.raises(UsageError) as error:
        datasets.load(config.preset("image_folder", **options).data)
    return error.value


def test_image_folder_needs_a_folder_and_a_side(fabricated_others):
    assert refusal(data_dir=fabricated_others, image_size=None).parameter == "image_size"
    assert refusal().parameter == "data_dir"
    error = refusal(data_dir=fabricated_others / "nowhere")
    assert (error.parameter, error.given) == ("data_dir", str(fabricated_others / "nowhere"))
    assert refusal(data_dir=fabricated_others, download=True).parameter == "download"


def test_an_image_that_cannot_be_read_is_named(fabricated_others):
    broken = fabricated_others / "train" / "dog" / "1.png"
    broken.write_bytes(b"no image")
    error = refusal(data_dir=fabricated_others)
    assert (error.parameter, error.given) == ("data", str(broken))


def test_only_the_images_within_the_limits_are_decoded(fabricated_others):
    full = datasets.load(config.preset("image_folder", data_dir=fabricated_others).data)
    limits = {"limit_train": 4, "limit_test": 2}
    cut = datasets.load(config.preset("image_folder", data_dir=fabricated_others, **limits).data)
    assert cut.train.labels.tolist() == [0, 0, 1, 1]
    assert cut.test.labels.tolist() == [0, 1]
    for images, all_images in ((cut.train, full.train), (cut.test, full.test)):
        for name in ("pixels", "labels", "hashes"):
            assert torch.equal(getattr(images, name), getattr(all_images, name)[images.rows])
    torch.testing.assert_close(torch.tensor(cut.mean), cut.train.floats().mean((0, 2, 3)))
    files = sorted((fabricated_others / "train").glob("*/*.png"))
    for row in set(range(6)) - set(cut.train.rows.tolist()):
        files[row].write_bytes(b"no image")
    again = datasets.load(config.preset("image_folder", data_dir=fabricated_others, **limits).data)
    assert torch.equal(again.train.pixels, cut.train.pixels)
    error = refusal(data_dir=fabricated_others, limit_test=5)
    assert (error.parameter, error.given) == ("limit_test", 5)


def test_mean_and_std_are_those_of_the_training_images(fabricated_others):
    loaded = datasets.load(config.preset("image_folder", data_dir=fabricated_others).data)
    values = loaded.train.floats().double()
    torch.testing.assert_close(torch.tensor(loaded.mean).double(), values.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(loaded.std).double(), values.std((0, 2, 3)))


def test_images_that_would_not_fit_into_memory_are_refused_unread(fabricated_others, monkeypatch):
    monkeypatch.setattr(reading, "memory", lambda device: 4 * 9 * 3 * 32**2)  # of nine images, and there are ten
    monkeypatch.setattr(reading, "decode", None)
    error = refusal(data_dir=fabricated_others, data_memory="ram")
    assert (error.parameter, error.given) == ("image_size", 32)
    with pytest.raises(UsageError) as error:
        datasets.load(config.preset("stl10", data_dir=fabricated_others, image_size=64).data)
    assert (error.value.parameter, error.value.given) == ("image_size", 64)


def test_images_that_are_all_alike_are_refused(fabricated_others):
    for path in (fabricated_others / "test").glob("*/*.png"):
        Image.new("RGB", (20, 30), "white").save(path)
    assert refusal(data_dir=fabricated_others).parameter == "data"


def test_a_missing_file_of_stl10_is_named(fabricated_others):
    (fabricated_others / "stl10_binary" / "test_X.bin").unlink()
    with pytest.raises(UsageError, match="test_X.bin is missing: `data_dir` is the folder that holds stl10_binary"):
        datasets.load(config.preset("stl10", data_dir=fabricated_others).data)


def test_halves_of_the_digits_are_the_digits():
    whole = datasets.load(config.preset("digits").data)
    for name, first in (("digits_0_4", 0), ("digits_5_9", 5)):
        half = datasets.load(config.preset(name).data)
        assert half.classes == tuple("0123456789"[first : first + 5])
        for images, all_images in ((half.train, whole.train), (half.test, whole.test)):
            chosen = (all_images.labels - first).clamp(-1, 5) == all_images.labels - first
            chosen &= (all_images.labels >= first) & (all_images.labels < first + 5)
            assert torch.equal(images.rows, all_images.rows[chosen])
            assert torch.equal(images.labels, all_images.labels[chosen] - first)


@pytest.mark.e2e
def test_settings_are_chosen_on_training_images_alone(fabricated):
    for name, options in (("digits", {}), ("cifar10", {"data_dir": fabricated})):
        whole, chosen_by = (
            datasets.load(config.preset(name, **options).data),
            datasets.load(config.preset(f"{name}_val", **options).data),
        )
        rows = torch.cat([chosen_by.train.rows, chosen_by.test.rows])
        assert sorted(rows.tolist()) == sorted(whole.train.rows.tolist())
        assert 0.08 < len(chosen_by.test) / len(whole.train) < 0.25
        assert len(chosen_by.test.labels.unique()) == 10


@pytest.mark.e2e
def test_the_real_cifar10(cifar10_dir):
    loaded = datasets.load(config.preset("cifar10", data_dir=cifar10_dir).data)
    assert (len(loaded.train), len(loaded.test)) == (50_000, 10_000)
    assert loaded.classes[:3] == ("airplane", "automobile", "bird")
    assert loaded.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    pixels = loaded.train.floats()
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(loaded.mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(loaded.std), atol=1e-3, rtol=0)


def test_tiny_imagenet_has_the_labels_of_its_text_files(fabricated_others):
    tiny = datasets.load(config.preset("tiny_imagenet", data_dir=fabricated_others).data)
    assert (tiny.shape, tiny.classes) == ((3, 64, 64), ("n01", "n02"))
    assert tiny.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert tiny.test.labels.tolist() == [1, 0]  # in the order of the list
    folder = fabricated_others / "tiny-imagenet-200"
    picture = Image.open(folder / "train" / "n01" / "images" / "n01_2.JPEG")
    assert torch.equal(tiny.train.pixels[2], torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    small = datasets.load(config.preset("tiny_imagenet", data_dir=fabricated_others, image_size=32, limit_test=1).data)
    assert (small.shape, len(small.test)) == ((3, 32, 32), 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "wnids.txt").unlink(), "wnids.txt is missing"),
        (lambda d: (d / "val" / "val_annotations.txt").unlink(), "val_annotations.txt is missing"),
        (lambda d: (d / "val" / "images" / "val_1.JPEG").unlink(), "val_1.JPEG is missing, and .* lists it"),
        (lambda d: (d / "wnids.txt").write_text("n02\n"), "val_1.JPEG has an unknown class n01"),
        (lambda d: (d / "wnids.txt").write_text("n02\nn01\nn03\n"), "n03/images has no image"),
        (lambda d: (d / "wnids.txt").write_text("\n"), "wnids.txt is empty"),
        (lambda d: (d / "val" / "val_annotations.txt").write_text(""), "val_annotations.txt is empty"),
        (lambda d: (d / "val" / "val_annotations.txt").write_text("val_1.JPEG n01\n"), "has a line without a tab"),
        (lambda d: (d / "val" / "val_annotations.txt").write_bytes(b"val_1.JPEG\tn\xff\n"), "is no text in UTF-8"),
    ],
)
def test_a_changed_tiny_imagenet_is_refused_by_name(damage, message, fabricated_others):
    damage(fabricated_others / "tiny-imagenet-200")
    with pytest.raises(UsageError, match=message + ".*`data_dir` is the folder that holds tiny-imagenet-200") as error:
        datasets.load(config.preset("tiny_imagenet", data_dir=fabricated_others).data)
    assert error.value.parameter == "data_dir"


def test_a_broken_dataset_of_others_is_refused_in_one_line():
    def nothing(config):
        return None

    DATASETS.register("of_others")(nothing)
    try:
        error = image_trees.refusal(datasets.load, config.preset("of_others").data)
        assert "its function returns NoneType" in str(error)
        for defaults, message in ((5, "its `defaults` are 5"), ({"epoch": 1}, "'epoch'; the nearest: epochs")):
            nothing.defaults = defaults
            error = image_trees.refusal(config.preset, "of_others")
            assert message in str(error)
            assert error.parameter == "data"
    finally:
        DATASETS.unregister("of_others")


def test_unlabeled_images_are_for_the_pretraining_alone(fabricated_others):
    labeled = datasets.load(config.preset("stl10", data_dir=fabricated_others, image_size=32).data)
    both = datasets.load(config.preset("stl10_unlabeled", data_dir=fabricated_others).data)
    assert torch.equal(both.train.pixels, labeled.train.pixels)
    assert labeled.pretraining is labeled.train
    found = both.pretraining
    assert torch.equal(found.pixels[:20], both.train.pixels)
    assert found.labels.tolist() == [*both.train.labels.tolist(), *[UNLABELED] * 7]
    assert found.rows.tolist() == list(range(27))  # after the 20 of training
    options = {"data_dir": fabricated_others, "limit_unlabeled": 3}
    assert len(datasets.load(config.preset("stl10_unlabeled", **options).data).pretraining) == 23


@pytest.mark.parametrize(("name", "channels", "levels"), [("digits", 1, 16), ("cifar100", 3, 255)])
def test_a_tree_of_images_takes_the_form_of_the_dataset(name, channels, levels, fabricated_others, tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "notes.txt").write_text("no image")
    for path, size, color in (("white.png", (30, 20), (255, 255, 255)), ("deep/er/red.jpg", (50, 40), (255, 0, 0))):
        picture = Image.new("RGB", size, color)
        picture.paste((0, 0, 0), (0, 0, 8, 8))
        picture.save(tree / path, quality=100)
    folder = None if name == "digits" else fabricated_others
    data = datasets.load(config.preset(name, data_dir=folder, unlabeled=tree).data)
    own = data.pretraining.take(torch.arange(len(data.train), len(data.pretraining)))
    assert own.pixels.shape == (2, *data.shape)
    assert own.labels.tolist() == [UNLABELED, UNLABELED]
    assert not set(own.rows.tolist()) & set(data.train.rows.tolist() + data.test.rows.tolist())
    white, red = own.pixels.amax((2, 3)).tolist()  # sorted by folder
    assert white == [levels] * channels
    expected = [round(0.299 * levels)] if channels == 1 else [254, 0, 0]
    assert red == pytest.approx(expected, abs=0.06 * levels)  # edges of a JPEG


@pytest.mark.parametrize(("made", "message"), [(False, "is no folder"), (True, "has no image")])
def test_a_tree_without_images_is_refused_when_the_pretraining_needs_it(made, message, tmp_path):
    if made:
        (tmp_path / "tree").mkdir()
    data = datasets.load(config.preset("digits", unlabeled=tmp_path / "tree").data)  # a probe does without
    with pytest.raises(UsageError, match=message) as error:
        len(data.pretraining)
    assert error.value.parameter == "unlabeled"


def test_a_limit_above_the_number_of_unlabeled_images_is_refused(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "one.png")
    data = datasets.load(config.preset("digits", unlabeled=tmp_path, limit_unlabeled=2).data)
    with pytest.raises(UsageError, match="has 1 images") as error:
        len(data.pretraining)
    assert error.value.parameter == "limit_unlabeled"
