import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from acl_plugin import config, data
from acl_plugin.errors import UsageError


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


def test_limits_take_the_first_images():
    full, cut = data.load(config.preset("digits")), data.load(config.preset("digits", limit_train=10, limit_test=3))
    assert torch.equal(cut.train.rows, full.train.rows[:10])
    assert torch.equal(cut.test.rows, full.test.rows[:3])
    with pytest.raises(UsageError, match="--limit-train 2000: digits has 1297 such images"):
        data.load(config.preset("digits", limit_train=2000))


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


@pytest.fixture
def fabricated(tmp_path, monkeypatch):
    """A CIFAR-10 folder in torchvision's layout, with 10 images a batch."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch():
        return {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}

    train = [write(f"data_batch_{i}", batch()) for i in range(1, 6)]
    test = [write("test_batch", batch())]
    name, md5 = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


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


def test_the_real_cifar10(cifar10_dir):
    loaded = data.load(config.preset("cifar10", data_dir=cifar10_dir))
    assert (len(loaded.train), len(loaded.test)) == (50_000, 10_000)
    assert loaded.classes[:3] == ("airplane", "automobile", "bird")
    assert loaded.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    pixels = loaded.train.floats()
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(loaded.mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(loaded.std), atol=1e-3, rtol=0)
