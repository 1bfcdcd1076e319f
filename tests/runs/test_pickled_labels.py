"""Pickles of pseudo-labels in the forms that AdvCL and A-InfoNCE ship, and what must not be run from one."""

import os
import pickle

import numpy as np
import pytest
import torch

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.runs.pseudo_labels import read_pseudo_labels, write_pseudo_labels
from acl_plugin.training.build import build
from conftest import TINY

pytestmark = pytest.mark.unit

TRAIN = {2: [0, 1, 1, 0, 1], 3: [2, 0, 1, 1, 0]}


def saved(tmp_path, content, protocol=3):
    path = tmp_path / "labels.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def arrays(dtype="int32"):
    labels = {f"pseudo_train_{k}": np.array(y, dtype) for k, y in TRAIN.items()}
    return labels | {"pseudo_test_2": np.zeros(3, dtype)}


def tensors():
    return {f"pseudo_train_{k}": torch.tensor(y) for k, y in TRAIN.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("content", [arrays(), arrays("int64"), arrays(">i2"), arrays("uint8"), tensors()])
def test_labels_of_training_images_are_read_in_the_order_of_the_dataset(content, protocol, tmp_path):
    path = saved(tmp_path, content, protocol)
    labels = read_pseudo_labels(path)
    assert labels.sizes == [2, 3]
    assert labels(torch.tensor([4, 0, 1])).tolist() == [[1, 0, 1], [0, 2, 0]]
    assert (labels.provenance["n"], labels.provenance["file"]) == (5, "labels.pkl")
    write_pseudo_labels(labels, tmp_path / "again.npz")
    assert torch.equal(read_pseudo_labels(tmp_path / "again.npz").table, labels.table)


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpys_name_of_any_version_is_known(core, tmp_path):
    content = pickle.dumps(arrays(), 3)
    here = np.empty(0).__reduce__()[0].__module__.encode()
    assert here in content
    path = tmp_path / "labels.pkl"
    path.write_bytes(content.replace(here, core))
    assert read_pseudo_labels(path).sizes == [2, 3]


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def malicious(kind):
    storage = torch.storage._load_from_bytes
    return {
        "system": Call(os.mkdir, "evil"),
        "builtin": Call(eval, "__import__('os').mkdir('evil')"),
        "in an array": {"pseudo_train_2": np.array([Call(os.mkdir, "evil"), 1], dtype=object)},
        "in a storage": {"pseudo_train_2": Call(storage, pickle.dumps(Call(os.mkdir, "evil"), 2))},
        "load": Call(np.load, "evil.npy", None, True),
        "fromstring": Call(np.frombuffer, b"1234"),
    }[kind]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["system", "builtin", "in an array", "in a storage", "load", "fromstring"])
def test_a_malicious_pickle_is_refused_and_nothing_is_run(kind, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, malicious(kind), protocol)
    with pytest.raises(UsageError, match="is damaged or no file of pseudo-labels") as error:
        read_pseudo_labels(path)
    assert error.value.parameter == "pseudo_labels"
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["labels.pkl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list, not a dictionary with pseudo_train_K"),
        ({"train_2": np.arange(2)}, "no labels pseudo_train_K"),
        ({"pseudo_train_2": np.zeros(3)}, "values of type 'f8'"),
        ({"pseudo_train_2": torch.zeros(3)}, "no whole numbers"),
        ({"pseudo_train_2": [0, 1]}, "no whole numbers"),
        ({"pseudo_train_2": np.zeros((3, 2), int)}, r"of shape \(3, 2\)"),
        ({"pseudo_train_2": np.zeros(0, int)}, r"of shape \(0,\)"),
        ({"pseudo_train_2": np.arange(3)}, "labels and rows do not fit together"),
        ({"pseudo_train_2": -np.ones(3, int)}, "labels and rows do not fit together"),
        ({"pseudo_train_2": np.zeros(3, int), "pseudo_train_3": np.zeros(4, int)}, "of different lengths"),
    ],
)
def test_what_are_no_labels_is_refused_with_what_it_is(content, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_pseudo_labels(saved(tmp_path, content))


def test_a_truncated_pickle_is_refused(tmp_path):
    path = saved(tmp_path, arrays())
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match="is damaged"):
        read_pseudo_labels(path)


def images(rows):
    pixels = torch.zeros(len(rows), 1, 2, 2, dtype=torch.uint8)
    return Images(pixels, torch.zeros(len(rows), dtype=torch.int64), torch.tensor(rows), 255)


def test_another_number_of_images_is_refused(tmp_path):
    labels = read_pseudo_labels(saved(tmp_path, arrays()))
    labels.check_images(images([0, 1, 2, 3, 4]))
    labels.check_images(images([0, 4, 2]))  # a part of the images
    with pytest.raises(UsageError, match="of a dataset of 5 images, and here are 4"):
        labels.check_images(images([0, 1, 2, 3]))
    with pytest.raises(UsageError, match="of a dataset of 5 images, and here are 6"):
        labels.check_images(images([0, 1, 2, 3, 4, 5]))


@pytest.mark.e2e
@pytest.mark.parametrize("objective", ["advcl", "a_infonce"])
def test_objectives_take_such_a_file_by_its_name(objective, tmp_path):
    config = preset("digits", **TINY | {"objective": objective, "objective_kwargs": {}})
    data = datasets.load(config.data)
    count = int(data.pretraining.rows.max()) + 1
    content = {"pseudo_train_2": np.arange(count, dtype="int32") % 2}
    given = {"pseudo_labels": str(saved(tmp_path, content))}
    module = build(config.replace(objective_kwargs=given), data)
    assert module.objective.clusters.labels.sizes == [2]
    with pytest.raises(UsageError, match="training images have no pseudo-labels"):
        short = {"pseudo_labels": str(saved(tmp_path, {"pseudo_train_2": np.arange(9) % 2}))}
        build(config.replace(objective_kwargs=short), data)
