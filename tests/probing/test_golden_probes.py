"""The loss of each probe on one batch against what the authors' code gave."""

from types import SimpleNamespace

import pytest
import torch

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.probing import semi_supervised
from acl_plugin.probing.adversarial_finetuning import adversarial_loss, trades_loss
from acl_plugin.probing.autolora import AutoLora
from acl_plugin.probing.inputs import Probing
from acl_plugin.probing.linear_head import head_loss
from golden_cases import THREAT, Kept, assert_same, classifier_in_float64, left_by
from golden_inputs import digest, noise, outputs, start_from_noise

pytestmark = pytest.mark.numeric

GOLDEN = outputs("probes")
TWO = ("clean", "adv")


def kept(steps=10, name="PGD", **kwargs):
    return Kept(steps, name, alpha=THREAT.eps / 4, **kwargs)


def noise_at_zero(monkeypatch):
    """A gradient that is zero up to rounding has the sign of the noise, in every code."""
    sign = torch.Tensor.sign
    monkeypatch.setattr(torch.Tensor, "sign", lambda g: sign(torch.where(g.abs() < 1e-12, noise(g.shape, 1), g)))


@pytest.fixture
def run(monkeypatch):
    """A step of a loss on a classifier and a batch; attacks start from the same noise in all codes."""

    def step(loss, attack=None, banks=(), frozen=False, normalized=False):
        model, x, y = classifier_in_float64(banks, normalized)
        model.backbone.requires_grad_(not frozen)
        start_from_noise(monkeypatch)
        monkeypatch.setattr(torch, "randn_like", lambda x: noise(x.shape, 1))
        value = loss(model, x, y)
        value.backward()
        return left_by(model, value, attack.made[-1] if attack else None)

    return step


@pytest.mark.parametrize(
    ("code", "case", "steps"),
    [("robustssl", "slf", 0), ("robustssl", "alf", 10), ("a_infonce", "alf, PGD-20", 20), ("dynacl", "lp", 0)],
)
def test_linear_finetuning(code, case, steps, run):
    attack = kept(steps) if steps else None
    assert_same(run(lambda m, x, y: head_loss(m, x, y, attack), attack, frozen=True), GOLDEN[code][case])


@pytest.mark.parametrize("name", ["gsa_slf", "gsa_alf"])
def test_linear_finetuning_of_gsa_rsl(name, run):
    """With the attack of the protocol itself."""
    threat = ThreatModel("Linf", 0.0314)
    given = Probing.gsa_pgd(type("Given", (), {"threat": threat})(), 10, 7 / 31.4)
    attack = None if name == "gsa_slf" else Kept(given.steps, given.name, threat, **given.kwargs)
    ours = run(lambda m, x, y: head_loss(m, x, y, attack), attack, frozen=True, normalized=True)
    assert_same(ours, GOLDEN["gsa_rsl"][name])


@pytest.mark.parametrize(
    ("code", "case", "banks", "attacked", "benign"),
    [
        ("robustssl", "aff_trades, one bank", (), "adv", "adv"),
        ("robustssl", "aff_trades, two banks", TWO, "clean", "clean"),
        ("air", "aft", TWO, "clean", "adv"),
    ],
)
def test_trades(code, case, banks, attacked, benign, run):
    attack = kept(name="TPGD")
    assert_same(run(lambda m, x, y: trades_loss(m, x, y, attack, attacked, benign), attack, banks), GOLDEN[code][case])


@pytest.mark.parametrize(("case", "banks", "benign"), [("aft", (), "adv"), ("aff_trades from the image", TWO, "clean")])
def test_trades_from_the_image(case, banks, benign, monkeypatch, run):
    noise_at_zero(monkeypatch)
    attack = kept(random_start=False)
    ours = run(lambda m, x, y: trades_loss(m, x, y, attack, benign, benign), attack, banks)
    assert_same(ours, GOLDEN["dynacl"][case])


def test_adversarial_training(run):
    attack = kept()
    assert_same(run(lambda m, x, y: adversarial_loss(m, x, y, attack), attack), GOLDEN["rcs"]["aff_pgd"])


@pytest.mark.parametrize(("case", "banks"), [("aff_autolora, one bank", ()), ("aff_autolora, two banks", TWO)])
def test_autolora(case, banks, monkeypatch):
    """Gradients of the weights in their order, then those of the branch."""
    model, x, y = classifier_in_float64(banks)
    keys = [name for name, _ in model.named_parameters()]
    tuned = AutoLora(model, 2, range(8), 8, None, *banks[:1])
    for p, size in zip(tuned.branch, [1, 0.3] * 100, strict=False):
        p.data = noise(p.shape, size)
    monkeypatch.setattr(tuned, "measure", lambda: 0.7)
    attack = kept(random_start=False)
    value = tuned.loss(x, y, attack)
    value.backward()
    found = dict(model.named_parameters())
    plain = [found[key] if key in found else found[original_of(key)] for key in keys]
    ours = left_by(model, value, attack.made[-1])
    ours["gradients"] = digest([torch.zeros_like(p) if p.grad is None else p.grad for p in (*plain, *tuned.branch)])
    assert_same(ours, GOLDEN["autolora"][case])


def original_of(key):
    layer, _, name = key.rpartition(".")
    return f"{layer}.parametrizations.{name}.original"


def test_semi_supervised_finetuning(monkeypatch, run):
    """Three of eight images are labeled; the predictions of the first stage are given."""
    rows, attack = torch.arange(8), kept()
    known, tables = rows < 3, (noise((8, 4), 3).softmax(1), rows < 3)
    for name, value in {"descend": None, "_tables": tables}.items():
        monkeypatch.setattr(semi_supervised, name, lambda *_, value=value, **__: value)
    given = {"config": preset("digits"), "device": torch.device("cpu"), "checkpoints": None, "pgd": attack}
    data = SimpleNamespace(train=SimpleNamespace(take=lambda rows: rows))

    def loss(model, x, y):
        banks = {"adv": model.backbone.state_dict()}
        probing = SimpleNamespace(**given, data=data, model=model, banks=banks, score=lambda model: None)
        return semi_supervised.prepare(probing, known)(x, y, rows)

    assert_same(run(loss, attack), GOLDEN["acl"]["semi"])
