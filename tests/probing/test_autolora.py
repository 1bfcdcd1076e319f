import pytest
import torch
import torch.nn.functional as F

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.view_options import probed
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.low_rank import without_branch
from acl_plugin.probing.autolora import AutoLora
from conftest import spec

ATTACK = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2, {"random_start": False})


@pytest.fixture
def images():
    return datasets.load(preset("digits", limit_train=48).data).train


@pytest.fixture
def tuned(images):
    torch.manual_seed(0)
    model = Classifier(spec(classes="0123456789"))
    made = AutoLora(model, 2, images, 4, probed(preset("digits").probe)).train()
    for p in made.branch:
        p.data = 0.1 * torch.randn_like(p)
    return made


def batch(images):
    return images.floats(0, 4), images.labels[:4]


def test_each_part_of_the_weights_learns_from_its_images(tuned, images):
    """r = 0: only benign images, by branch and head; r = 1 without the divergence: only adversarial ones."""
    x, y = batch(images)
    tuned.measure = lambda: 0.0
    tuned.loss(x, y, ATTACK).backward()
    backbone = [p for p in tuned.model.backbone.parameters() if not any(p is q for q in tuned.branch)]
    assert all(p.grad is not None and p.grad.any() for p in (*tuned.branch, *tuned.model.head.parameters()))
    assert not any(p.grad.any() for p in backbone)
    assert all(p.requires_grad for p in tuned.parameters())


def test_the_accuracy_is_that_of_the_branch(tuned, images):
    tuned.eval()
    with torch.no_grad():
        expected = (tuned.model(images.floats()).argmax(1) == images.labels).double().mean().item()
    assert tuned.measure() == expected
    with without_branch(tuned.model), torch.no_grad():
        other = tuned.model(images.floats())
    assert not torch.allclose(other, tuned.model(images.floats()))


def test_when_the_accuracy_is_measured(tuned, images, monkeypatch):
    """12 steps an epoch: at the start, after the first step, and after each third from there."""
    seen = []
    monkeypatch.setattr(tuned, "measure", lambda: seen.append(int(tuned.steps)) or 0.5)
    for _ in range(24):
        with torch.no_grad():
            tuned.loss(*batch(images), ATTACK)
    assert seen == [0, 1, 4, 7, 10, 12, 13, 16, 19, 22]


def test_the_loss_is_its_formula(tuned, images):
    x, y = batch(images)
    tuned.measure = lambda: 0.25
    tuned.eval()
    value = tuned.loss(x, y, ATTACK)
    benign = tuned.model(x)
    with without_branch(tuned.model):
        x_adv = ATTACK.classifier(tuned.model, x, y)
        adversarial = tuned.model(x_adv)
    p, q = benign.softmax(1), adversarial.softmax(1)
    divergence = (p * (p.log() - q.log())).sum() / 4
    expected = 0.75 * F.cross_entropy(benign, y) + 0.25 * F.cross_entropy(adversarial, y) + 1.5 * divergence
    torch.testing.assert_close(value, expected)
