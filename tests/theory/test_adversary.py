"""The audit's adversary on a classifier whose worst case is known, and AutoAttack's images of a run."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data import datasets
from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.models.encoder import Classifier
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier
from acl_plugin.theory import adversary
from conftest import spec

CPU = torch.device("cpu")
THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture(scope="module")
def attacked():
    """A random classifier, images, and their losses under the audit's adversary."""
    torch.manual_seed(0)
    model = Classifier(spec(classes=("0", "1", "2"))).eval().requires_grad_(False)
    x, y = torch.rand(24, *model.spec.shape), torch.arange(24) % 3
    return model, x, y, adversary.attack_probe(model, x, y, THREAT, CPU)


def losses(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def test_it_is_at_least_as_strong_as_one_start_and_as_fgsm(attacked):
    model, x, y, x_adv = attacked
    assert ((x_adv - x).abs() <= 0.1 + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    once = adversary.pgd(THREAT).classifier(model, x, y, generator=torch.Generator().manual_seed(3))
    fgsm = InnerAttack(THREAT, "FGSM").classifier(model, x, y)
    small = InnerAttack(THREAT, "PGD", 20, {"alpha": 1.25 * 0.1 / 20}).classifier(model, x, y)
    found = losses(model, x_adv, y).mean()
    assert found >= losses(model, once, y).mean() - 1e-3
    assert found > losses(model, fgsm, y).mean()
    assert found > losses(model, small, y).mean()  # the steps of a training attack


def test_the_worst_of_several_is_taken_for_each_image(attacked):
    model, x, y, x_adv = attacked
    mixed = [torch.where((torch.arange(24) % 2 == i).view(-1, 1, 1, 1), x_adv, x) for i in range(2)]
    assert torch.equal(adversary.worst(model, mixed, y, CPU), x_adv)


@pytest.mark.e2e
def test_autoattacks_images_are_those_of_the_run(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    config = run.read_config()
    data, threat = datasets.load(config.data), ThreatModel(config.threat.norm, config.threat.eps)
    images, model = data.test.subset(20), load_classifier(run.path)
    found = adversary.autoattack_images(run, data, images, threat)
    broken = {v.index for v in read_verdicts(run.verdicts_file) if v.broken_by is not None}
    moved = (found != images.floats()).flatten(1).any(1)
    assert {row for row, at in zip(images.rows.tolist(), moved.tolist(), strict=True) if at} == broken & set(
        images.rows.tolist()
    )
    assert (model(found[moved]).argmax(1) != images.labels[moved]).all()
    half = ThreatModel(config.threat.norm, config.threat.eps / 2)
    assert adversary.autoattack_images(run, data, images, half) is None
    record = json.loads(run.evaluation_file.read_text())
    run.evaluation_file.write_text(json.dumps(record | {"images": record["images"] | {"content": "other"}}))
    assert adversary.autoattack_images(run, data, images, threat) is None
    run.evaluation_file.unlink()
    assert adversary.autoattack_images(run, data, images, threat) is None
