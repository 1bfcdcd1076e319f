import dataclasses
import shutil

import pytest
import torch

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.subsets import stratified
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing import semi_supervised
from acl_plugin.probing.adversarial_finetuning import attack_of
from acl_plugin.probing.inputs import Probing
from acl_plugin.probing.protocols import encoder_banks
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from conftest import TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_a_share_of_each_class_is_labeled(share):
    labels = datasets.load(preset("digits").data).train.labels
    chosen = stratified(labels, share, seed=0)
    for c in range(10):
        assert chosen[labels == c].sum() == max(1, round(share * int((labels == c).sum())))
    assert torch.equal(chosen, stratified(labels, share, seed=0))
    assert not torch.equal(chosen, stratified(labels, share, seed=1))


@pytest.fixture
def prepared(two_banks_run, tmp_path):
    config = preset(
        "digits", **TINY | {"limit_train": 40, "objective": "acl_ds", "probe_protocol": "semi", "label_fraction": 0.2}
    )
    run, images = RunDir(shutil.copytree(two_banks_run, tmp_path / "run")), datasets.load(config.data)
    encoder = load_encoder(run.path)
    torch.manual_seed(0)
    model = Classifier(dataclasses.replace(encoder.spec, classes=images.classes))
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    return Probing(config, images, None, encoder_banks(run), model, CPU)


@pytest.mark.e2e
def test_the_loss_is_the_formula(prepared, monkeypatch, same_noise):
    probing = prepared
    config, images, model = probing.config, probing.data, probing.model
    tables = {}
    original = semi_supervised._tables

    def keep(*arguments):
        tables["soft"], tables["known"] = original(*arguments)
        return tables["soft"], tables["known"]

    monkeypatch.setattr(semi_supervised, "_tables", keep)
    attack = attack_of(ThreatModel("Linf", 0.1), "PGD")
    loss = semi_supervised.prepare(probing, semi_supervised.labeled(config, images.train))
    train = images.train
    x, y, rows = train.floats(0, 12), train.labels[:12], train.rows[:12]
    soft, known = tables["soft"], tables["known"]
    assert 0 < known[rows].sum() < 12
    torch.testing.assert_close(soft[train.rows].sum(1), torch.ones(40))
    model.eval()
    value = loss(x, y, rows)
    targets = torch.tensor([y[i] if known[r] else soft[r].argmax() for i, r in enumerate(rows)])
    moved = attack.classifier(model, x, targets)
    p, q = model(x).softmax(1), model(moved).softmax(1)
    expected = 0.0
    for i, row in enumerate(rows):
        distilled = -sum(soft[row, c] * torch.log(q[i, c]) for c in range(10))
        part = (distilled - torch.log(q[i, y[i]])) / 2 if known[row] else distilled
        divergence = sum(p[i, c] * (torch.log(p[i, c]) - torch.log(q[i, c])) for c in range(10))
        expected = expected + (part + 6 * divergence) / 12
    assert value.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.e2e
def test_labels_of_the_others_are_not_used(prepared):
    probing = prepared
    config, images = probing.config, probing.data
    probing.model.eval()
    known = semi_supervised.labeled(config, images.train)
    x, rows = images.train.floats(0, 12), images.train.rows[:12]
    values = []
    for wrong in (False, True):
        labels = images.train.labels.clone()
        loss = semi_supervised.prepare(probing, known)
        if wrong:
            labels[~known] = 0
        torch.manual_seed(0)
        values.append(loss(x, labels[:12], rows).item())
    assert values[0] == values[1]
