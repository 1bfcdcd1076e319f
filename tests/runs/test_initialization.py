"""Runs that start from the encoder of another run."""

import json

import pytest
import torch

from acl_plugin import load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.provenance import additional_data
from acl_plugin.models import norm_banks
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import write_model
from acl_plugin.training.build import build
from conftest import TINY


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("objective", ["simclr", "acl_a2a", "acl_ds", "gsa_rsl", "dynacl"])
def test_every_norm_bank_starts_from_its_own(objective, two_banks_run):
    config = preset("digits", **TINY | {"objective": objective, "objective_kwargs": {}, "init": two_banks_run})
    module = build(config, datasets.load(config.data))
    adversarial, benign = load_encoder(two_banks_run), load_encoder(two_banks_run, benign=True)
    assert not equal(adversarial.backbone.state_dict(), benign.backbone.state_dict())
    banks, model = module.objective.norm_banks, module.objective.downstream(module.model)
    for bank in banks:
        expected = adversarial if bank == banks[-1] else benign
        state = norm_banks.export(model.backbone, bank).state_dict()
        assert equal(state, expected.backbone.state_dict()), bank
        projector = norm_banks.export(model.projector, bank).state_dict()
        same = module.objective.projector == "three_layer"
        assert equal(projector, adversarial.projector.state_dict()) == same


@pytest.mark.e2e
def test_by_command_the_encoders_options_follow(two_banks_run, tmp_path):
    small = ["--epochs=1", "--limit-train=16", "--limit-test=12", "--batch-size=8", "--objective=simclr"]
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--init", str(two_banks_run), *small]) == 0
    run = RunDir(tmp_path / "run")
    config = run.read_config()
    assert config.encoder.backbone_kwargs == TINY["backbone_kwargs"]  # which was not given
    record = json.loads(run.pretraining_file.read_text())["init"]
    assert (record["run"], len(record["encoder_sha256"])) == (two_banks_run.name, 64)
    assert additional_data(run, "digits") == (False, "pretrained and probed on digits alone")
    assert additional_data(run, "digits_val")[0]
    snapshot = tmp_path / "run" / "checkpoints" / "epoch-00001"
    snapshot.mkdir(parents=True)
    write_model(
        RunDir(snapshot).encoder_file, load_encoder(run.path).spec, load_encoder(run.path).backbone.state_dict()
    )
    other = tmp_path / "of-snapshot"
    assert main(["pretrain", "--out", str(other), "--init", str(snapshot), *small]) == 0
    assert additional_data(RunDir(other), "digits")[0] is False
    kept = [*small, "--epochs=0", "--objective=acl_ds"]
    assert main(["pretrain", "--out", str(tmp_path / "kept"), "--init", str(two_banks_run), *kept]) == 0
    for benign in (False, True):
        one, other = (load_encoder(path, benign=benign) for path in (tmp_path / "kept", two_banks_run))
        assert equal(one.backbone.state_dict(), other.backbone.state_dict())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"backbone": "resnet18", "backbone_kwargs": {}}, "has another encoder: backbone resnet18, there resnet10t"),
        ({"stem": "native"}, "has another encoder: stem native, there cifar"),
        ({"image_size": 16}, r"has another encoder: shape \(1, 16, 16\), there \(1, 8, 8\)"),
    ],
)
def test_another_encoder_is_refused(own, message, two_banks_run):
    config = preset("digits", **TINY | {"objective": "simclr", "init": two_banks_run} | own)
    with pytest.raises(UsageError, match=message) as error:
        build(config, datasets.load(config.data))
    assert error.value.parameter == "init"


def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, two_banks_run):
    out = ["pretrain", "--objective=simclr", "--out", str(tmp_path / "run")]
    for given in (["--init", str(tmp_path / "nowhere")], ["--init", str(two_banks_run), "--pretrained"]):
        assert main([*out, *given]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "no such run folder" in line or "not from both" in line
        assert not (tmp_path / "run").exists()
