import json
import shutil

import pytest
import torch
from run_files import contents

from acl_plugin import load_classifier, load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import read_model, write_model
from acl_plugin.runs.transfer import transferred
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

CIFAR = TINY | {"augment": "simclr", "limit_test": 10}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = preset("digits_0_4", **TINY | {"objective": "acl_ds"})
    return pretrain(config, tmp_path_factory.mktemp("runs") / "low")


@pytest.mark.e2e
def test_from_five_digits_to_the_others(source, tmp_path, capsys, few):
    out = str(tmp_path / "high")
    command = ["transfer", str(source.path), "--data", "digits_5_9", "--out", out, "--limit-test", "12"]
    assert main([*command, "--probe-epochs", "2"]) == 0
    assert f"acl-plugin probe {out} && acl-plugin evaluate {out}" in capsys.readouterr().out
    assert main(["probe", out]) == 0
    assert main(["evaluate", out]) == 0
    assert json.loads((RunDir(out).evaluation_file).read_text())["dataset"] == "digits_5_9"
    assert json.loads((RunDir(out).probe_file).read_text())["probe_epochs"] == 2
    model = load_classifier(out)
    assert model.spec.classes == tuple("56789")
    for benign in (False, True):
        one, other = load_encoder(source.path, benign=benign), load_encoder(out, benign=benign)
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    # the same command again changes nothing; another one is refused
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "high").glob("*.pt")}
    assert main([*command, "--probe-epochs", "2"]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "high").glob("*.pt")}
    assert main([*command, "--probe-epochs", "3"]) == 2
    assert "a run with different settings (--probe-epochs 3, there 2)" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_folder_does_not_take_the_encoder_of_another_run(source, tmp_path, capsys):
    """The configuration of both transfers is the same; the weights are not."""
    other, out = shutil.copytree(source.path, tmp_path / "other"), tmp_path / "out"
    spec, weights = read_model(RunDir(other).encoder_file)
    write_model(RunDir(other).encoder_file, spec, {k: 2 * v for k, v in weights.items()})
    options = ["--data", "digits_5_9", "--out", str(out)]
    assert main(["transfer", str(source.path), *options]) == 0
    before = contents(out)
    capsys.readouterr()
    assert main(["transfer", str(other), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"(the encoder of {other}, there another one); choose another --out" in line
    assert contents(out) == before
    assert main(["transfer", str(source.path), *options]) == 0


@pytest.mark.e2e
def test_threat_model_and_probe_are_the_new_data_sets(source):
    config, there = transferred(source.read_config(), "cifar100", data_dir=None), preset("cifar100")
    assert (config.threat.eps, config.probe.probe_augment, config.probe.probe_lr) == (
        there.threat.eps,
        there.probe.probe_augment,
        there.probe.probe_lr,
    )
    assert (config.encoder.backbone_kwargs, config.objective.objective) == (TINY["backbone_kwargs"], "acl_ds")


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["cifar100", "stl10", "image_folder"])
def test_from_cifar10_to_other_images(name, fabricated, fabricated_others, tmp_path, few):
    config = preset("cifar10", **CIFAR, data_dir=fabricated)
    run = pretrain(config, tmp_path / "cifar10")
    out = tmp_path / name
    options = ["--data-dir", str(fabricated_others), "--limit-train", "6", "--limit-test", "4", "--probe-epochs", "1"]
    options += ["--image-size", "32"] if name == "stl10" else []
    assert main(["transfer", str(run.path), "--data", name, "--out", str(out), *options]) == 0
    assert main(["probe", str(out)]) == 0
    loaded = datasets.load(RunDir(out).read_config().data)
    assert loaded.shape == (3, 32, 32)
    model = load_classifier(out)
    assert model.spec.classes == loaded.classes
    assert model(loaded.test.floats(0, 2)).shape == (2, len(loaded.classes))
    # the encoder keeps its own normalization
    assert tuple(round(v, 4) for v in model.preprocess.mean.flatten().tolist()) == (0.4914, 0.4822, 0.4465)


@pytest.mark.e2e
def test_mistakes(source, fabricated_others, tmp_path, capsys):
    def told(*arguments):
        assert main(["transfer", *arguments, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    run = str(source.path)
    assert "nowhere: no such run folder" in told("nowhere", "--data", "digits")
    assert "unknown dataset 'digit'; the nearest: digits" in told(run, "--data", "digit")
    assert "stl10 needs --data-dir" in told(run, "--data", "stl10")
    folder = str(fabricated_others)
    assert "are 3x96x96, and" in told(run, "--data", "stl10", "--data-dir", folder)
    assert "--image-size 2: allowed is a number from 8" in told(run, "--data", "digits", "--image-size", "2")
    assert "add --image-size 8" in told(run, "--data", "digits", "--image-size", "16")
    shutil.rmtree(fabricated_others / "test")
    assert f"--data-dir: {folder} has no folder test" in told(run, "--data", "image_folder", "--data-dir", folder)
