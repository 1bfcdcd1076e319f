import collections
import functools
import gc
import hashlib
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import docstring_parser
import numpy as np
import pyautoattack
import pytest
import setuptools  # noqa: F401 - before a library imports Python's distutils, which no compiler works with then
import sklearn.datasets
import torch

import acl_plugin
from acl_plugin import config as configuration
from acl_plugin import registry
from acl_plugin.attacks import inner_attack
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.cli.main import main
from acl_plugin.errors import reason
from acl_plugin.evaluation import own_model, run_folder, suite
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.spec import ModelSpec
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.reporting import figures
from acl_plugin.runs.pseudo_labels import read_pseudo_labels, write_pseudo_labels
from acl_plugin.runtime.messages import on_stderr
from acl_plugin.theory import adversary, critics, divergence_estimates, generalization, label_shift

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: each, and what it starts, has one
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
TINY = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"stem_width": 4, "channels": [4, 8, 8, 8]},
    "epochs": 2,
    "batch_size": 8,
    "limit_train": 16,
    "limit_test": 12,
    "probe_epochs": 2,
    "objective": "acl_ds",
}
"""Options with which the whole job on digits takes seconds; steps take a third of those of the default objective."""
QUICK = {"attack_steps": 1}
"""Of a pretraining whose attack is there and not more."""
OPTIONS = [f"--{k.replace('_', '-')}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in TINY.items()]
"""The same on the command line."""
FINISHED = [*OPTIONS, "--objective=gsa_rsl", "--attack-steps=1", "--limit-test=24", "--keep-every=1"]
"""Of ``finished_run``."""

HOMES = itertools.count()
TIERS = ("e2e", "ddp", "slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test of no other tier is a unit test. Files with long tests come first and the shortest last: no core waits."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker(pytest.mark.unit)
    tests = collections.Counter(item.path for item in items)
    long = {item.path for item in items if item.get_closest_marker("unit") is None}

    def turn(item):
        count = tests[item.path]
        return (0, count) if item.path in long else (1, -count), item.path  # the fewer, the longer

    items.sort(key=turn)


def pytest_collection_finish():
    """What was imported stays, so that no search for garbage passes through it again."""
    gc.freeze()


def pytest_sessionfinish():
    """Let the interpreter free what was imported, as usual."""
    gc.unfreeze()


def require_compiler():
    """Skip a test where torch.compile does not work, with the reason."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:
        pytest.skip(f"no compiler works here: {reason(error)}")


@pytest.fixture(scope="session", autouse=True)
def _without_fsync():
    """No test cuts the power, so none waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _read_once():
    """The digits, the texts of options and what is installed are those of the first look, which takes most of it."""
    original = registry.entry_points
    installed = functools.cache(lambda group, path: original(group=group))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", lambda *, group: installed(group, tuple(sys.path)))
        for module, name in ((sklearn.datasets, "load_digits"), (docstring_parser, "parse_from_object")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture(autouse=True)
def _quiet_and_apart(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's index of exported models; Lightning keeps to warnings."""
    home = tmp_path_factory.getbasetemp() / f"home-{next(HOMES)}"  # made by what writes to it
    monkeypatch.setenv("ACL_PLUGIN_HOME", str(home))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with on_stderr():
        yield


@pytest.fixture
def same_noise(monkeypatch):
    """All attacks have the same noise, so that an attack can be repeated by hand."""
    monkeypatch.setattr(inner_attack, "noise_seed", lambda generator: 0)


@pytest.fixture
def tiny_config():
    return configuration.preset("digits", **TINY | QUICK)


def spec(shape=(1, 8, 8), backbone="resnet10t", kwargs=None, classes=(), stem="cifar"):
    channels = shape[0]
    kwargs = {"stem_width": 4, "channels": [4, 8, 8, 8]} if kwargs is None else kwargs
    return ModelSpec(backbone, kwargs, stem, shape, (0.4,) * channels, (0.3,) * channels, tuple(classes))


def trained_encoder(shape=(1, 8, 8)):
    torch.manual_seed(0)
    model = Encoder(spec(shape), ("clean", "adv"))
    for norm_bank, scale in (("clean", 1.0), ("adv", 0.5)):
        for _ in range(5):
            model(scale * torch.rand(8, *shape), norm_bank)
    return model


@pytest.fixture
def encoder():
    """A tiny ResNet with two norm banks whose statistics differ, in training mode."""
    return trained_encoder()


@pytest.fixture
def attack():
    return InnerAttack(ThreatModel("Linf", 0.1), "PGD", 3)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory):
    """A finished SimCLR run on the tiny backbone."""
    config = configuration.preset("digits", **TINY | {"objective": "simclr"})
    return acl_plugin.pretrain(config, tmp_path_factory.mktemp("teacher") / "run").path


@pytest.fixture(scope="session")
def two_banks_run(tmp_path_factory):
    """A pretrained run with two norm banks on 40 images; to be copied."""
    config = configuration.preset("digits", **TINY | {"limit_train": 40})
    return acl_plugin.pretrain(config, tmp_path_factory.mktemp("two_banks") / "run").path


@pytest.fixture(scope="session")
def labels_file(tmp_path_factory):
    """Pseudo-labels of all digits."""
    rows = torch.arange(1797)
    path = tmp_path_factory.mktemp("labels") / "labels.npz"
    write_pseudo_labels(PseudoLabels(rows, {2: rows % 2, 5: rows % 5}, {"data": "digits", "n": 1797}), path)
    return path


def _needed(name, teacher, labels):
    teacher, labels = {"teacher": teacher}, {"pseudo_labels": labels}
    if name == "3sat":
        return {"start": 0.0}  # with an attack from the first epoch on
    return {"deacl": teacher, "profeat": teacher, "advcl": labels, "a_infonce": labels}.get(name, {})


@pytest.fixture
def settings_of(teacher_run, labels_file):
    """What each objective cannot do without, by its name: objects."""
    return lambda name: _needed(name, acl_plugin.load_encoder(teacher_run), read_pseudo_labels(labels_file))


@pytest.fixture
def paths_of(teacher_run, labels_file):
    """The same in a configuration: paths."""
    return lambda name: _needed(name, str(teacher_run), str(labels_file))


STARTED = ("fare",)
"""Objectives that start from trained weights."""


@pytest.fixture
def options_of(teacher_run, paths_of):
    """Options of a run of each objective, with what it cannot do without."""

    def options(name):
        start = {"init": teacher_run} if name in STARTED else {}
        return {"objective": name, "objective_kwargs": paths_of(name), **start}

    return options


def shorten(patch, steps=3, queries=10):
    """AutoAttack with few iterations and queries; a suite's curve of few sizes; the audit's adversary and critics with
    few steps and no choices.
    """
    original = pyautoattack.AutoAttack._set_version

    def fast(self, version="standard"):
        original(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = steps
        self.square.n_queries = queries

    patch(pyautoattack.AutoAttack, "_set_version", fast)
    for module in (suite, run_folder, own_model):
        patch(module, "CURVE", (0.0, 1.0, 2.0))
    patch(adversary, "STEPS", 3)
    patch(adversary, "RESTARTS", 1)
    patch(divergence_estimates, "FOLDS", 2)
    patch(divergence_estimates, "PERMUTATIONS", 1)
    patch(critics, "INNER", 2)
    patch(critics, "STEPS", 5)
    patch(critics, "PENALTIES", (0.1,))
    patch(label_shift, "DECAYS", (3e-2,))
    patch(generalization, "DECAYS", (1.0,))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn, which takes most of the time of a report."""
    monkeypatch.setattr(figures, "svg", lambda figure: b"<svg></svg>")


@pytest.fixture
def few(monkeypatch, undrawn):
    """Little to compute, for tests that are about bookkeeping."""
    shorten(monkeypatch.setattr)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run with every stage done, on the tiny backbone; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    run = str(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACL_PLUGIN_HOME", str(folder / "home"))
        shorten(patch.setattr)
        patch.setattr(figures, "svg", lambda figure: b"<svg></svg>")
        for command in (
            ["run", "--out", run, *FINISHED],
            ["audit", run],
            ["evaluate", run, "--suite", "standard", "--attacks", '["FGSM", "PGDL2"]'],
        ):
            assert main(command) == 0
    return Path(run)


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory):
    """The real CIFAR-10 in torchvision's layout: ACL_PLUGIN_DATA, or unpacked from ../shared."""
    if "ACL_PLUGIN_DATA" in os.environ:
        return Path(os.environ["ACL_PLUGIN_DATA"])
    store = ROOT.parent / "shared" / "data"
    if not (store / "unpack_cifar10.py").is_file():
        pytest.skip("the real CIFAR-10 is not here: set ACL_PLUGIN_DATA to the folder that holds cifar-10-batches-py")
    folder = tmp_path_factory.mktemp("cifar10")
    command = [sys.executable, str(store / "unpack_cifar10.py"), str(store / "cifar10"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def _pickled(folder, name, content):
    """Write a file as CIFAR's are; (name, MD5)."""
    folder.mkdir(exist_ok=True)
    raw = pickle.dumps(content)
    (folder / name).write_bytes(raw)
    return [name, hashlib.md5(raw).hexdigest()]


@pytest.fixture
def fabricated(tmp_path, monkeypatch):
    """A CIFAR-10 folder in torchvision's layout, with 10 images a batch."""
    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"

    def batch():
        return {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}

    train = [_pickled(folder, f"data_batch_{i}", batch()) for i in range(1, 6)]
    test = [_pickled(folder, "test_batch", batch())]
    name, md5 = _pickled(folder, "batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """ImageNet's folders, with one training image per class; all files are links to a few images of 60 x 45."""
    from PIL import Image

    from acl_plugin.data.imagenet import robustbench_images

    rng, root = np.random.default_rng(2), tmp_path_factory.mktemp("imagenet")
    classes, names = robustbench_images()
    kept = [root / f"{number}.jpeg" for number in range(12)]
    for path in kept:
        Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((60, 45)).save(path)
    for number, name in enumerate([f"train/{c}/{c}_1.JPEG" for c in classes] + [f"val/{name}" for name in names]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(kept[number % len(kept)], root / name)
    return root


@pytest.fixture
def fabricated_others(tmp_path, monkeypatch):
    """A folder that holds small CIFAR-100, STL-10, TinyImageNet and train/ and test/ folders of images."""
    from PIL import Image
    from torchvision.datasets import CIFAR100, STL10

    rng, root = np.random.default_rng(1), tmp_path / "others"
    root.mkdir()
    folder = root / "cifar-100-python"

    def batch(count):
        return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "fine_labels": list(range(count))}

    monkeypatch.setattr(CIFAR100, "train_list", [_pickled(folder, "train", batch(100))])
    monkeypatch.setattr(CIFAR100, "test_list", [_pickled(folder, "test", batch(10))])
    name, md5 = _pickled(folder, "meta", {"fine_label_names": [f"class{i}" for i in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})

    folder = root / "stl10_binary"
    folder.mkdir()

    def raw(name, content):
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    classes = b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n"
    lists = {
        split: [
            raw(f"{split}_X.bin", rng.integers(0, 256, (10 * times, 3, 96, 96), dtype=np.uint8).tobytes()),
            raw(f"{split}_y.bin", np.tile(np.arange(1, 11, dtype=np.uint8), times).tobytes()),
        ]
        for split, times in (("train", 2), ("test", 1))
    }
    unlabeled = rng.integers(0, 256, (7, 3, 96, 96), dtype=np.uint8).tobytes()
    others = [raw("unlabeled_X.bin", unlabeled), raw("class_names.txt", classes)]
    monkeypatch.setattr(STL10, "train_list", [*lists["train"], *others])
    monkeypatch.setattr(STL10, "test_list", lists["test"])

    tiny = root / "tiny-imagenet-200"
    for number, kind in enumerate(("n02", "n01")):
        (tiny / "train" / kind / "images").mkdir(parents=True)
        (tiny / "val" / "images").mkdir(parents=True, exist_ok=True)
        for i in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(tiny / "train" / kind / "images" / f"{kind}_{i}.JPEG")
        picture.rotate(90).save(tiny / "val" / "images" / f"val_{number}.JPEG")
    (tiny / "wnids.txt").write_text("n02\nn01\n")
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")

    for split, count in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
                picture.save(root / split / kind / f"{i}.png")
    return root


@pytest.fixture
def register():
    """Registers objectives for the time of a test."""
    names = []

    def add(name, objective):
        acl_plugin.register(name)(objective)
        names.append(name)

    yield add
    for name in names:
        registry.unregister(name)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder in place of benchmarks/, with nothing kept."""
    import benchmarks.__main__ as main

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(main, "HERE", tmp_path)
    monkeypatch.setattr(main, "RESULTS", tmp_path / "results")
    return tmp_path
