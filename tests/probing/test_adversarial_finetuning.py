import copy

import pytest
import torch
import torch.nn.functional as F

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing.adversarial_finetuning import adversarial_loss, attack_of, logits, set_banks, trades_loss
from acl_plugin.runtime import seeding
from conftest import spec


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    model = Classifier(spec(classes="012"))
    model.train()
    for _ in range(3):
        model(torch.rand(8, 1, 8, 8))
    return model


@pytest.fixture
def tpgd():
    return attack_of(ThreatModel("Linf", 0.1), "TPGD")


def test_the_attack_has_ten_steps_of_a_quarter_of_eps(tpgd):
    assert (tpgd.steps, tpgd.kwargs["alpha"]) == (10, 0.025)


@pytest.mark.e2e
def test_a_step_is_trades(classifier, tpgd, same_noise):
    """Cross-entropy and six times the divergence, with gradients through both, against a plain double loop."""
    torch.manual_seed(1)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    twin = copy.deepcopy(classifier)
    loss = trades_loss(classifier, x, y, tpgd)
    loss.backward()
    twin.eval()
    with torch.no_grad():
        target = twin(x)
    moved = tpgd.trades(twin, x, twin, target)
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    twin.train()
    p, q = twin(x).softmax(1), twin(moved).softmax(1)
    expected = 0.0
    for i in range(4):
        expected = expected - torch.log(p[i, y[i]]) / 4
        expected = expected + 6 / 4 * sum(p[i, c] * (torch.log(p[i, c]) - torch.log(q[i, c])) for c in range(3))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(classifier.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_the_attack_is_torchattacks_and_changes_nothing(classifier, tpgd):
    import torchattacks

    classifier.eval()
    x = torch.rand(4, 1, 8, 8)
    before = copy.deepcopy(classifier.state_dict())
    state = torch.get_rng_state()
    target, generator = classifier(x).detach(), torch.Generator()
    moved = tpgd.trades(classifier, x, classifier, target, generator=generator.manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    from acl_plugin.attacks.bridge import noise_seed

    with seeding.isolated_rng(noise_seed(generator.manual_seed(0))):
        theirs = torchattacks.TPGD(classifier, eps=0.1, alpha=0.025, steps=10)(x, None)
    assert torch.equal(moved, theirs)

    def divergence(images):
        return F.kl_div(classifier(images).log_softmax(1), classifier(x).log_softmax(1), log_target=True)

    assert divergence(moved) > divergence(x) + 1e-6


def test_released_dynacl_starts_at_the_image(classifier):
    """Its first step follows the sign of rounding, so a single step of it moves some pixels and others not."""
    classifier.eval()
    x = torch.rand(4, 1, 8, 8)
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 10, {"alpha": 0.025, "random_start": False})
    moved = attack.trades(classifier, x, classifier, classifier(x).detach())
    again = attack.trades(classifier, x, classifier, classifier(x).detach())
    assert torch.equal(moved, again)  # no noise
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    gradient = torch.autograd.grad(
        F.cross_entropy(classifier(x.requires_grad_()), classifier(x.detach()).softmax(1).detach()), x
    )[0]
    assert gradient.abs().max() < 1e-6


def test_cost_of_a_step_is_27_forwards(classifier, tpgd, monkeypatch):
    counts = {"forwards": 0, "backwards": 0}
    original = Classifier.features

    def features(model, x):
        f = original(model, x)
        counts["forwards"] += len(x)
        if f.requires_grad:
            weights = any(p.requires_grad for p in model.backbone.parameters())
            f.register_hook(lambda _: counts.update(backwards=counts["backwards"] + len(x) * (2 if weights else 1)))
        return f

    monkeypatch.setattr(Classifier, "features", features)
    trades_loss(classifier, torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), tpgd).backward()
    assert (counts["forwards"] + counts["backwards"]) / 4 == 27


def test_cross_entropy_on_adversarial_images(classifier, same_noise):
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    attack = attack_of(ThreatModel("Linf", 0.1), "PGD")
    twin = copy.deepcopy(classifier)
    loss = adversarial_loss(classifier, x, y, attack)
    moved = attack.classifier(twin, x, y)
    expected = -torch.log(twin(moved).softmax(1)[torch.arange(4), y]).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    twin.eval()
    assert F.cross_entropy(twin(moved), y) > F.cross_entropy(twin(x), y)


@pytest.mark.e2e
def test_two_banks_send_benign_images_their_own_way(classifier, tpgd, same_noise):
    states = {}
    for name, scale in (("clean", 1.0), ("adv", 0.4)):
        source = copy.deepcopy(classifier.backbone)
        for _ in range(5):
            source(scale * torch.rand(8, 1, 8, 8))
        states[name] = source.state_dict()
    set_banks(classifier, states)
    assert norm_banks.names_of(classifier.backbone) == ["clean", "adv"]
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    twin = copy.deepcopy(classifier)
    loss = trades_loss(classifier, x, y, tpgd, "clean", "clean")
    with torch.no_grad(), norm_banks.inference(twin):
        target = logits(twin, x, "clean")
    moved = tpgd.trades(twin, x, lambda images: logits(twin, images), target)
    p, q = logits(twin, x, "clean").log_softmax(1), logits(twin, moved, "adv").log_softmax(1)
    expected = F.nll_loss(p, y) + 6 * (p.exp() * (p - q)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert twin(x).shape == (4, 3)
