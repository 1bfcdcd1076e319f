import json

import numpy as np
import pytest
import torch

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.models.features import cluster, features_of
from acl_plugin.objectives import pseudo_labels
from acl_plugin.objectives.pseudo_labels import ClusterHeads, PseudoLabels
from acl_plugin.runs.models import load_encoder
from acl_plugin.runs.pseudo_labels import read_pseudo_labels, write_pseudo_labels


def test_clusters_of_separate_clouds_are_the_clouds():
    torch.manual_seed(0)
    clouds = torch.arange(60) % 3
    features = 10 * torch.eye(3)[clouds] + torch.randn(60, 3)
    labels = cluster(features, 3, seed=0)
    assert all(len(set(labels[clouds == c].tolist())) == 1 for c in range(3))
    assert len(set(labels.tolist())) == 3


def test_clusters_are_a_function_of_the_seed():
    features = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    state = np.random.get_state()[1].tolist()
    assert torch.equal(cluster(features, 7, 2**40 + 1), cluster(features, 7, 2**40 + 1))
    assert not torch.equal(cluster(features, 7, 0), cluster(features, 7, 1))
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("size", [1, 9])
def test_a_number_of_clusters_that_cannot_be_is_reported(size):
    with pytest.raises(UsageError, match=f"`clusters` {size}: allowed is 2 to 8, the number of images"):
        cluster(torch.rand(8, 2), size, 0)


def test_a_file_is_read_as_it_was_written(tmp_path):
    rows = torch.tensor([4, 0, 7])
    written = PseudoLabels(rows, {5: torch.tensor([4, 0, 1]), 2: torch.tensor([0, 1, 1])}, {"data": "digits", "n": 3})
    write_pseudo_labels(written, tmp_path / "labels.npz")
    read = read_pseudo_labels(tmp_path / "labels.npz")
    assert read.sizes == [2, 5]
    assert read.provenance == {"data": "digits", "n": 3}
    assert read(rows).tolist() == [[0, 1, 1], [4, 0, 1]]
    with np.load(tmp_path / "labels.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["labels_2", "labels_5", "provenance", "rows"]
    assert not list(tmp_path.glob("*.tmp"))


def images_of(rows, shade=0):
    pixels = torch.full((len(rows), 1, 2, 2), shade, dtype=torch.uint8) + torch.tensor(rows).view(-1, 1, 1, 1).byte()
    return Images(pixels, torch.zeros(len(rows), dtype=torch.int64), torch.tensor(rows), 255)


def test_images_without_labels_are_refused():
    labels = PseudoLabels(torch.tensor([0, 2]), {2: torch.tensor([0, 1])}, {"data": "digits", "n": 2})
    labels.check_images(images_of([2, 0, 2]))
    with pytest.raises(UsageError, match="2 of 3 training images have no pseudo-labels") as error:
        labels.check_images(images_of([0, 1, 200]))
    assert (error.value.parameter, error.value.allowed) == ("pseudo_labels", "2 images of digits")


def test_labels_of_other_images_are_refused(tmp_path):
    made_of = images_of([0, 1, 2])
    labels = PseudoLabels(made_of.rows, {2: torch.tensor([0, 1, 0])}, {"data": "digits", "n": 3}, made_of.hashes)
    write_pseudo_labels(labels, tmp_path / "labels.npz")
    read = read_pseudo_labels(tmp_path / "labels.npz")
    for each in (labels, read):
        each.check_images(images_of([2, 0]))
        with pytest.raises(UsageError, match="2 of 2 training images are not those") as error:
            each.check_images(images_of([2, 0], shade=7))
        assert error.value.parameter == "pseudo_labels"


def test_a_runs_features_are_clustered_with_provenance(teacher_run, tmp_path):
    images = datasets.load(preset("digits", limit_train=32).data).train
    encoder = load_encoder(teacher_run, benign=True)
    labels = pseudo_labels.make(encoder, images, [2, 4], 3, {"data": "digits"})
    assert labels.provenance["data"] == "digits"
    assert (labels.provenance["n"], labels.provenance["seed"]) == (32, 3)
    assert torch.equal(labels(images.rows)[1], cluster(features_of(encoder, images), 4, 3))
    assert torch.equal(features_of(encoder, images, batch_size=5), features_of(encoder, images, batch_size=5))
    torch.testing.assert_close(features_of(encoder, images, batch_size=5), encoder.features(images.floats()))


def bad(tmp_path, kind):
    path = tmp_path / "labels.npz"
    rows, labels = np.arange(3), np.array([0, 1, 1])
    provenance = np.array(json.dumps({}))
    if kind == "missing":
        return tmp_path / "nowhere.npz"
    if kind == "text":
        path.write_text("no zip")
    elif kind == "pickle":
        np.savez(path, rows=np.array([object()]), labels_2=labels, provenance=provenance)
    elif kind == "too high":
        np.savez(path, rows=rows, labels_2=labels + 1, provenance=provenance)
    elif kind == "short":
        np.savez(path, rows=rows, labels_2=labels[:2], provenance=provenance)
    elif kind == "none":
        np.savez(path, rows=rows, provenance=provenance)
    elif kind == "truncated":
        np.savez(path, rows=rows, labels_2=labels, provenance=provenance)
        path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "too high", "short", "none", "truncated"])
def test_bad_files_are_refused_in_a_line(tmp_path, kind):
    message = "no such file; make it with acl-plugin pseudo-labels" if kind == "missing" else "no file of pseudo-labels"
    with pytest.raises(UsageError, match=message):
        read_pseudo_labels(bad(tmp_path, kind))


def test_a_tensor_by_row_stands_for_clusterings():
    table = torch.tensor([[0, 1, 0, 1], [2, 0, 1, 0]])
    labels = PseudoLabels.by_row(table)
    assert labels.sizes == [2, 3]
    assert torch.equal(labels(torch.tensor([3, 0])), table[:, [3, 0]])
    assert PseudoLabels.by_row(table[0]).sizes == [2]
    labels.check_images(images_of([0, 3]))
    with pytest.raises(UsageError, match="1 of 2 training images have no pseudo-labels, which are of 4 images"):
        labels.check_images(images_of([0, 4]))


@pytest.mark.parametrize(
    "table", [torch.rand(4), torch.zeros(2, 3, 4).long(), torch.empty(0).long(), torch.tensor([[0, 1], [1, 0]])]
)
def test_tensors_that_are_no_clusterings_are_refused(table):
    with pytest.raises(UsageError, match=r"`pseudo_labels` .*: allowed are \(N,\) or .number of clusterings, N."):
        PseudoLabels.by_row(table)


@pytest.mark.parametrize(
    "labels", [{}, {2: torch.tensor([0, 2])}, {2: torch.tensor([0, 1, 1])}, {2: torch.tensor([-1, 0])}]
)
def test_labels_that_do_not_fit_the_rows_are_refused(labels):
    with pytest.raises(UsageError, match="labels and rows do not fit together"):
        PseudoLabels(torch.tensor([0, 1]), labels)


def test_the_users_labels_stay_where_they_are():
    labels = PseudoLabels.by_row(torch.tensor([0, 1]))
    heads = ClusterHeads(labels, 4).to("meta")
    assert heads.labels.table.device.type == "meta"
    assert labels.table.device.type == "cpu"


@pytest.mark.parametrize(
    ("rows", "labels"),
    [([0, 1], [0.7, 0.2]), ([0.0, 1.0], [0, 1]), ([3, 3], [0, 1]), ([], []), ([-1, 0], [0, 1])],
)
def test_labels_that_would_be_rounded_or_lost_are_refused(rows, labels):
    with pytest.raises(UsageError, match="labels and rows do not fit together"):
        PseudoLabels(torch.tensor(rows), {2: torch.tensor(labels)})
