from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from acl_plugin import config, data
from acl_plugin.errors import UsageError
from acl_plugin.subsets import subset_rows


def test_digits_are_split_once_and_for_all_and_stratified():
    one, two = data.load(config.preset("digits")), data.load(config.preset("digits", seed=5))
    assert (len(one.train), len(one.test)) == (1297, 500)
    assert torch.equal(one.test.rows, two.test.rows)
    assert not set(one.train.rows.tolist()) & set(one.test.rows.tolist())
    counts = torch.bincount(one.test.labels)
    assert counts.min() >= 48
    assert counts.max() <= 52


def test_digits_rows_are_scikit_learns_and_pixels_are_sixteenths():
    test, bunch = data.load(config.preset("digits")).test, load_digits()
    row = test.rows[7].item()
    assert test.labels[7] == bunch.target[row]
    np.testing.assert_array_equal(test.floats(7, 8)[0, 0].numpy(), (bunch.images[row] / 16).astype("float32"))


def test_limits_take_images_that_keep_the_shares_of_the_classes(capsys):
    full, cut = data.load(config.preset("digits")), data.load(config.preset("digits", limit_train=20, limit_test=3))
    assert torch.equal(cut.train.rows, full.train.rows[subset_rows(full.train.labels, 20)])
    assert cut.train.labels.bincount().tolist() == [2] * 10
    assert len(cut.test) == 3
    assert "in the 3 test images 7 of 10 classes are missing" in capsys.readouterr().err
    with pytest.raises(UsageError, match="digits has 1297 such images") as error:
        data.load(config.preset("digits", limit_train=2000))
    assert (error.value.parameter, error.value.given) == ("limit_train", 2000)


def test_batches_are_a_function_of_seed_and_epoch():
    images = data.load(config.preset("digits", limit_train=20)).train

    def rows(**options):
        settings = {"batch_size": 6, "seed": 1, "epoch": 2} | options
        return [r.tolist() for _, _, r in data.ShuffledBatches(images, **settings)]

    assert rows() == rows()
    assert rows() != rows(epoch=3)
    assert rows() != rows(seed=2)
    assert [len(r) for r in rows()] == [6, 6, 6]
    assert len({r for batch in rows() for r in batch}) == 18


def test_ranks_share_out_each_step():
    images = data.load(config.preset("digits", limit_train=20)).train
    whole = [r.tolist() for _, _, r in data.ShuffledBatches(images, 8, 0, 0)]
    parts = [[r.tolist() for _, _, r in data.ShuffledBatches(images, 4, 0, 0, rank, 2)] for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_cifar10_from_torchvisions_layout(fabricated):
    loaded = data.load(config.preset("cifar10", data_dir=fabricated))
    assert loaded.shape == (3, 32, 32)
    assert (len(loaded.train), len(loaded.test)) == (50, 10)
    assert loaded.classes[3] == "class3"
    assert torch.equal(loaded.test.rows, torch.arange(10))


def test_missing_and_damaged_files_are_named(fabricated):
    batch = fabricated / "cifar-10-batches-py" / "data_batch_3"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:100])  # a truncated pickle
    with pytest.raises(UsageError, match="data_batch_3 is damaged"):
        data.load(config.preset("cifar10", data_dir=fabricated))
    batch.unlink()
    with pytest.raises(UsageError, match=r"data_batch_3 is missing: --data-dir is the folder that holds cifar-10-batc"):
        data.load(config.preset("cifar10", data_dir=fabricated))


def test_no_folder():
    with pytest.raises(UsageError, match="cifar10 needs --data-dir FOLDER; add --download"):
        data.load(config.preset("cifar10"))
    with pytest.raises(UsageError, match="no such folder; --download"):
        data.load(config.preset("cifar100", data_dir=Path("/nowhere")))


def test_stl10_cifar100_and_image_folders(fabricated_others):
    stl10 = data.load(config.preset("stl10", data_dir=fabricated_others))
    assert stl10.shape == (3, 96, 96)
    assert (len(stl10.train), len(stl10.test)) == (20, 10)
    assert stl10.train.labels.tolist() == 2 * list(range(10))
    assert stl10.classes[1] == "bird"
    small = data.load(config.preset("stl10", data_dir=fabricated_others, image_size=32)).train
    assert small.pixels.shape == (20, 3, 32, 32)
    area = stl10.train.floats().unflatten(2, (32, 3)).unflatten(4, (32, 3)).mean((3, 5))
    assert (small.floats() - area).abs().mean() < 0.1  # antialiased: near the mean of what a pixel covers
    cifar100 = data.load(config.preset("cifar100", data_dir=fabricated_others))
    assert (len(cifar100.train), len(cifar100.test), len(cifar100.classes)) == (100, 10, 100)
    folder = data.load(config.preset("image_folder", data_dir=fabricated_others))
    assert folder.shape == (3, 32, 32)
    assert folder.classes == ("cat", "dog")
    assert folder.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(torch.tensor(folder.mean), folder.train.floats().mean((0, 2, 3)))


def test_image_folders_that_cannot_be_read(fabricated_others):
    def told(**options):
        with pytest.raises(UsageError) as error:
            data.load(config.preset("image_folder", data_dir=fabricated_others, **options))
        return str(error.value)

    assert "image_folder needs --image-size" in told(image_size=None)
    (fabricated_others / "test" / "dog").rename(fabricated_others / "test" / "wolf")
    assert "other classes: dog, wolf in one of them only" in told()
    next((fabricated_others / "train" / "cat").iterdir()).write_bytes(b"no image")
    assert "train holds an image that cannot be read" in told()
    (fabricated_others / "stl10_binary" / "test_X.bin").unlink()
    with pytest.raises(UsageError, match="test_X.bin is missing: --data-dir is the folder that holds stl10_binary"):
        data.load(config.preset("stl10", data_dir=fabricated_others))


def test_halves_of_the_digits_are_the_digits():
    whole = data.load(config.preset("digits"))
    for name, first in (("digits_0_4", 0), ("digits_5_9", 5)):
        half = data.load(config.preset(name))
        assert half.classes == tuple("0123456789"[first : first + 5])
        for images, all_images in ((half.train, whole.train), (half.test, whole.test)):
            chosen = (all_images.labels - first).clamp(-1, 5) == all_images.labels - first
            chosen &= (all_images.labels >= first) & (all_images.labels < first + 5)
            assert torch.equal(images.rows, all_images.rows[chosen])
            assert torch.equal(images.labels, all_images.labels[chosen] - first)


def test_settings_are_chosen_on_training_images_alone(fabricated):
    for name, options in (("digits", {}), ("cifar10", {"data_dir": fabricated})):
        whole, chosen_by = data.load(config.preset(name, **options)), data.load(config.preset(f"{name}_val", **options))
        rows = torch.cat([chosen_by.train.rows, chosen_by.test.rows])
        assert sorted(rows.tolist()) == sorted(whole.train.rows.tolist())
        assert 0.08 < len(chosen_by.test) / len(whole.train) < 0.25
        assert len(chosen_by.test.labels.unique()) == 10


def test_the_real_cifar10(cifar10_dir):
    loaded = data.load(config.preset("cifar10", data_dir=cifar10_dir))
    assert (len(loaded.train), len(loaded.test)) == (50_000, 10_000)
    assert loaded.classes[:3] == ("airplane", "automobile", "bird")
    assert loaded.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    pixels = loaded.train.floats()
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(loaded.mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(loaded.std), atol=1e-3, rtol=0)
