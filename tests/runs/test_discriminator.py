"""The discriminator of a run: kept as it was trained, and a critic of the audit."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from acl_plugin import create_objective, load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import TWO_SIDED, preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.registry import OBJECTIVES
from acl_plugin.runs.discriminator import logits, read_discriminator, write_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from conftest import QUICK, TINY


def settings(**own):
    return preset("digits", **TINY | QUICK | {"objective": "gsa_rsl", "objective_kwargs": own, "keep_every": 1})


@pytest.mark.parametrize("depth", ["linear", "deep"])
@pytest.mark.parametrize("layer", ["projections", "features"])
def test_it_is_written_and_read(depth, layer, tmp_path):
    run, h = RunDir(tmp_path), Discriminator(6, depth)
    assert read_discriminator(run) is None
    write_discriminator(run, layer, h)
    found_layer, found = read_discriminator(run)
    x = torch.randn(5, 6)
    assert found_layer == layer
    assert torch.equal(found.values(x), h.values(x))


def test_damage_is_named(tmp_path):
    run = RunDir(tmp_path)
    run.discriminator_file.write_bytes(b"no file of torch")
    with pytest.raises(UsageError, match=r"discriminator.pt is damaged or no discriminator"):
        read_discriminator(run)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A run of the default settings; to be copied."""
    return pretrain(settings(), tmp_path_factory.mktemp("released") / "run").path


@pytest.fixture
def run(released, tmp_path):
    return RunDir(shutil.copytree(released, tmp_path / "run"))


@pytest.mark.e2e
@pytest.mark.parametrize("own", [{}, {"divergence": "deep", "layer": "features"}, {"base": "acl_ds"}])
def test_a_run_keeps_it_with_each_encoder_and_the_audit_uses_it(own, run, tmp_path, few, capsys):
    run = pretrain(settings(**own), tmp_path / "other") if own else run
    layer, found = read_discriminator(run)
    encoder, images = load_encoder(run.path), datasets.load(run.read_config().data).test.floats()
    with torch.no_grad():
        features = encoder.features(images)
        z = F.normalize(encoder.project(features), dim=1) if layer == "projections" else features
        torch.testing.assert_close(logits(encoder, layer, found, features).float(), found.values(z))
    assert all(read_discriminator(kept) is not None for kept in run.snapshots())
    assert main(["audit", str(run.path), "--checkpoints", "all"]) == 0
    rows = json.loads(run.audit_file.read_text())["rows"]
    assert len(rows) == 1 + len(run.snapshots())
    for row in rows:
        assert row["terms"]["js"] >= row["critics"]["trained discriminator"]


@pytest.mark.e2e
def test_an_audit_with_another_discriminator_is_another_audit(run, few, capsys):
    assert main(["audit", str(run.path)]) == 0
    write_discriminator(run, "projections", Discriminator(128))
    assert main(["audit", str(run.path)]) == 2
    assert "discriminator" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_transfer_takes_it_along(run, tmp_path):
    assert main(["transfer", str(run.path), "--out", str(tmp_path / "other"), "--data", "digits_val"]) == 0
    other = RunDir(tmp_path / "other")
    assert other.discriminator_file.read_bytes() == run.discriminator_file.read_bytes()
    shutil.rmtree(other.path)


def test_only_discriminators_are_kept():
    for name in OBJECTIVES.names():
        if name != "gsa_rsl":
            assert create_objective(name).discriminator() is None
    data = datasets.load(settings().data)
    assert build(settings(), data).objective.discriminator()[0] == "projections"
    for own in (TWO_SIDED, {"global_": 0.0}, {"divergence": "mmd"}):
        assert build(settings(**own), data).objective.discriminator() is None
