"""BYOL, SimSiam, MoCo and 3SAT: the authors' code, plain formulas, and what takes no gradient."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from acl_plugin import create_objective
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Views
from acl_plugin.training.guard import Guard, own_temperature
from conftest import spec
from golden_inputs import (
    digest,
    encoder_in_float64,
    noise,
    outputs,
    pairs_of_embeddings,
    start_from_noise,
    three_sat_case,
)

pytestmark = pytest.mark.numeric
ATTACK = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 1)
OTHERS = ("byol", "simsiam", "moco", "barlow_twins", "vicreg", "3sat")


class Kept(InnerAttack):
    """An attack that keeps what it made."""

    def scalar(self, *arguments):
        vars(self)["made"] = super().scalar(*arguments)
        return self.made


@pytest.mark.e2e
def test_two_updates_of_released_3sat_are_those_of_the_authors_code(monkeypatch):
    objective, model, optimizer, views, attack = three_sat_case()
    attack = Kept(attack.threat, attack.name, attack.steps)
    start_from_noise(monkeypatch)
    for theirs in outputs("three_sat")["3sat"]:
        optimizer.zero_grad()
        terms = objective.backward(model, views, attack)
        optimizer.step()
        parts = (model, objective.predictor)
        statistics = [b for m in parts for name, b in m.named_buffers() if name.endswith(("_mean", "_var"))]
        ours = {
            "loss": terms.total.item(),
            "moved": digest(attack.made.unbind(0)),
            "weights": digest([*model.parameters(), *objective.predictor.parameters()]),
            "statistics": digest(statistics),
            "target": digest(objective.target.encoder.parameters()),
        }
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, theirs[key]))
            torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def case(name, **settings):
    """Objective, encoder in float64 whose momentum copy lags, and views."""
    torch.manual_seed(0)
    objective = create_objective(name, **settings)
    model = encoder_in_float64(objective.norm_banks, objective.projector).train()
    objective.setup(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise(weight.shape, 0.02))
    a, b, images = torch.rand(3, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return objective, model, Views(a, b, images, torch.arange(6))


def cosine(x, y):
    return sum((p @ q) / p.norm() / q.norm() for p, q in zip(x, y, strict=True)) / len(x)


def gradients(loss, *modules):
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, weights, allow_unused=True)


def compare(objective, model, views, expected, *twins):
    terms = objective.backward(model, views, ATTACK)
    torch.testing.assert_close(terms.total, expected)
    parts = (model, *([objective.predictor] if hasattr(objective, "predictor") else []))
    for ours, theirs in zip((p.grad for m in parts for p in m.parameters()), gradients(expected, *twins), strict=True):
        torch.testing.assert_close(ours, theirs)
    return terms


def test_byol_predicts_the_momentum_encoder_that_follows_each_step():
    objective, model, views = case("byol", momentum=0.9)
    twin, p, k = (copy.deepcopy(m) for m in (model, objective.predictor, objective.target.encoder))
    with torch.no_grad():
        for target, q in zip(k.parameters(), twin.parameters(), strict=True):
            target.copy_(0.9 * target + 0.1 * q)
    za, zb, ka, kb = twin(views.a), twin(views.b), k(views.a), k(views.b)
    expected = 4 - 2 * cosine(p(za), kb.detach()) - 2 * cosine(p(zb), ka.detach())
    terms = compare(objective, model, views, expected, twin, p)
    unit = F.normalize(za, dim=1).detach()
    assert terms.parts["spread"].item() == pytest.approx((unit.std(0).mean() * unit.shape[1] ** 0.5).item())
    assert not any(w.requires_grad for w in objective.target.parameters())
    assert objective.downstream(model) is model


def test_simsiam_stops_the_gradient_of_the_other_view():
    objective, model, views = case("simsiam")
    twin, p = copy.deepcopy(model), copy.deepcopy(objective.predictor)
    za, zb = twin(views.a), twin(views.b)
    expected = -(cosine(p(za), zb.detach()) + cosine(p(zb), za.detach())) / 2
    compare(objective, model, views, expected, twin, p)


def test_moco_contrasts_with_a_queue_of_the_latest_keys():
    objective, model, views = case("moco", momentum=0.9, queue=8, temperature=0.3)
    twin, k, queue = copy.deepcopy(model), copy.deepcopy(objective.copy.encoder), objective.queue.clone()
    with torch.no_grad():
        for target, q in zip(k.parameters(), twin.parameters(), strict=True):
            target.copy_(0.9 * target + 0.1 * q)
    z, keys = twin(views.a), k(views.b).detach()
    expected = 0
    for i in range(6):
        s = [cosine(z[i : i + 1], other[None]) / 0.3 for other in (keys[i], *queue)]
        expected = expected - s[0] / 6 + torch.stack(s).logsumexp(0) / 6
    compare(objective, model, views, expected, twin)
    torch.testing.assert_close(objective.queue, torch.cat([F.normalize(keys, dim=1), queue])[:8])


def test_mocos_loss_is_lightlys():
    za, zb, bank = pairs_of_embeddings()
    za.requires_grad_()

    class Given(torch.nn.Module):
        """Encodes nothing: images are the embeddings."""

        size, norm_banks, backbone, projector = 8, ("clean",), None, None

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def project(self, features, norm_bank=None):
            return features

        def forward(self, x, norm_bank=None):
            return x

    objective, model = create_objective("moco", queue=20), Given()
    objective.setup(model)
    objective.queue = F.normalize(bank, dim=1)
    total = objective.terms(model, Views(za, zb), ATTACK).total
    (gradient,) = torch.autograd.grad(total, za)
    theirs = outputs("lightly")["moco"]
    assert total.item() == pytest.approx(theirs["value"], abs=1e-10)
    ours = [(gradient * noise(gradient.shape, 1)).sum().item(), gradient.square().sum().item()]
    assert ours == pytest.approx(theirs["gradient"], abs=1e-10)


@pytest.mark.usefixtures("same_noise")
def test_3sat_attacks_the_image_without_augmentation_in_eval_mode():
    objective, model, views = case("3sat", momentum=0.9)
    objective.target.follow(model)
    objective.momentum = 1.0  # so that the step itself does not move it again
    objective.weight = 0.4
    twin, p, k = (copy.deepcopy(m) for m in (model, objective.predictor, objective.target.encoder))
    before = {name: value.clone() for name, value in model.named_buffers()}
    attack = Kept(ATTACK.threat, ATTACK.name, ATTACK.steps)
    seen = []
    original = Kept.scalar

    def scalar(self, modules, x, rows):
        seen.append({name: value.clone() for name, value in model.named_buffers()})
        moved = original(self, modules, x, rows)
        seen.append({name: value.clone() for name, value in model.named_buffers()})
        return moved

    attack.__class__ = type("Watched", (Kept,), {"scalar": scalar})
    terms = objective.terms(model, views, attack)
    za, zb, ka, kb, ko = twin(views.a), twin(views.b), k(views.a), k(views.b), k(views.images)
    benign = 4 - 2 * cosine(p(za), kb.detach()) - 2 * cosine(p(zb), ka.detach())
    adversarial = 2 - 2 * cosine(p(twin(attack.made)), ko.detach())
    torch.testing.assert_close(terms.total, benign + 0.4 * adversarial)
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())
    assert any(not torch.equal(value, seen[0][name]) for name, value in before.items())
    assert (attack.made - views.images).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0, 0), (299, 0), (300, 0), (301, 1 / 700), (650, 0.5), (999, 699 / 700)]
)
def test_the_ramp_of_3sat(epoch, weight):
    objective = create_objective("3sat")
    objective.on_epoch(epoch, 1000)
    assert objective.weight == pytest.approx(weight)
    assert objective.attack_mode == ("scalar" if epoch >= 300 else None)
    assert objective.momentum == pytest.approx(1 - 0.01 * (math.cos(math.pi * epoch / 1000) + 1) / 2)
    released = create_objective("3sat", fidelity="released")
    released.on_epoch(epoch, 1000)
    assert (released.weight, released.attack_mode) == (pytest.approx(weight), "scalar")


def test_3sat_without_adversarial_epochs_never_attacks():
    objective = create_objective("3sat", start=1.0)
    objective.on_epoch(9, 10)
    assert (objective.weight, objective.attack_mode) == (0.0, None)


@pytest.mark.e2e
@pytest.mark.parametrize("name", OTHERS)
def test_a_collapsed_encoder_is_stopped_and_a_random_one_is_not(name, tiny_config, monkeypatch):
    """Embeddings that are the same for all images, at the end of a random network."""
    torch.manual_seed(0)
    objective = create_objective(name, **({"queue": 4} if name == "moco" else {}))
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    training = tiny_config.replace(warmup=0.0).training
    monkeypatch.setattr(Guard, "patience", 3)

    def watch():
        guard = Guard(training, 0.0, own_temperature(objective))
        for step in range(4):
            views = Views(*torch.rand(3, 4, 1, 8, 8), rows=torch.arange(4))
            guard.watch(objective.terms(model, views, ATTACK), step, 0.5)

    watch()
    original = model.project
    model.project = lambda features, norm_bank=None: 0 * original(features, norm_bank) + 1.0
    if hasattr(objective, "copy"):
        objective.copy.encoder.project = model.project
    with pytest.raises(TrainingStopped, match="the encoder has collapsed") as error:
        watch()
    assert ("temperature" in str(error.value)) == (name == "moco")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("byol", {"momentum": 1.5}, "momentum 1.5: allowed is a share"),
        ("3sat", {"start": -0.1}, "start -0.1: allowed is a share"),
        ("3sat", {"fidelity": "code"}, "unknown fidelity 'code'; allowed: paper, released"),
        ("moco", {"queue": 0}, "queue 0: allowed is a whole number of 1 or more"),
        ("moco", {"temperature": 0}, "temperature 0: allowed is a number above 0"),
        ("barlow_twins", {"redundancy": -1}, "redundancy -1: allowed is a number from 0"),
        ("vicreg", {"variance": "much"}, "variance 'much'"),
        ("simsiam", {"temperature": 0.5}, "unknown setting of objective 'simsiam': 'temperature'"),
    ],
)
def test_settings_out_of_range_are_reported(name, settings, message):
    with pytest.raises(UsageError, match=message):
        create_objective(name, **settings)
