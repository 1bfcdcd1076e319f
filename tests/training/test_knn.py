import csv

import pytest
import torch
from torch import nn

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.images import Images
from acl_plugin.data.subsets import stratified
from acl_plugin.errors import UsageError
from acl_plugin.training.knn import NEIGHBOURS, knn_accuracy
from acl_plugin.training.pretrain import pretrain


class Pixels(nn.Module):
    """The image is its own feature."""

    def __init__(self):
        super().__init__()
        self.marker = nn.Parameter(torch.zeros(1))

    def features(self, x, norm_bank=None):
        return x.flatten(1)


def test_it_is_the_vote_of_the_nearest_by_cosine():
    images = datasets.load(preset("digits", limit_train=300).data).train
    asked = stratified(images.labels, 0.1, 0)
    x = torch.nn.functional.normalize(images.floats().flatten(1), dim=1)
    right = 0
    for i in asked.nonzero().squeeze(1).tolist():
        others = (~asked).nonzero().squeeze(1)
        nearest = others[(x[others] @ x[i]).argsort(descending=True)[:NEIGHBOURS]]
        right += int(images.labels[nearest].bincount(minlength=10).argmax() == images.labels[i])
    assert knn_accuracy(Pixels(), images, 0) == pytest.approx(right / int(asked.sum()))
    assert right / int(asked.sum()) > 0.8


@pytest.mark.parametrize("sizes", [[50, 50, *[1] * 8], [200, 9], [100, 2, 1], [30, 30], [2, 2], [200, 25, 9, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_classes_that_are_far_apart_are_all_found(sizes, seed):
    """Each class is its own pixel: rare classes are not outvoted, and single images are no errors."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = torch.randint(0, 20, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = noise.flatten(1).scatter(1, labels[:, None], 255).view_as(noise).to(torch.uint8)
    assert knn_accuracy(Pixels(), Images(pixels, labels, torch.arange(len(labels)), 255), seed) == 1


@pytest.mark.e2e
def test_it_is_logged_now_and_then_and_changes_nothing(tiny_config, tmp_path):
    config = tiny_config.replace(objective="dynacl", limit_train=40, epochs=4)
    plain = pretrain(config, tmp_path / "plain")
    looked = pretrain(config.replace(knn_every=2), tmp_path / "looked")
    assert plain.encoder_file.read_bytes() == looked.encoder_file.read_bytes()
    rows = list(csv.DictReader(looked.metrics_file.open()))
    assert [bool(row["knn_accuracy"]) for row in rows] == [False, True, False, True]
    assert all(0 <= float(row["knn_accuracy"]) <= 1 for row in rows[1::2])
    assert [row["loss"] for row in rows] == [row["loss"] for row in csv.DictReader(plain.metrics_file.open())]


@pytest.mark.parametrize("count", [4, 9])
def test_so_few_images_that_none_are_left_are_refused(tiny_config, tmp_path, count):
    with pytest.raises(UsageError, match=f"no neighbors are left among {count} training images") as error:
        pretrain(tiny_config.replace(knn_every=1, limit_train=count, batch_size=4), tmp_path / "run")
    assert error.value.parameter == "knn_every"
    assert not (tmp_path / "run").exists()
