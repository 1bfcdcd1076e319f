import pytest
import torch
import torch.nn.functional as F

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.probing import linear_head
from acl_plugin.probing.linear_head import KnownFeatures, fit_head, head_loss, solve_head, zero_head
from conftest import spec

pytestmark = pytest.mark.numeric


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Classifier(spec(classes="0123456789"))
    for _ in range(5):
        model(datasets.load(preset("digits", limit_train=64).data).train.floats())
    return model


@pytest.fixture
def images():
    return datasets.load(preset("digits", limit_train=200).data).train


@pytest.mark.e2e
@pytest.mark.parametrize("attack", [None, InnerAttack(ThreatModel("Linf", 0.1), "PGD", 3)])
def test_the_backbone_is_left_as_it_is_to_the_bit(model, images, attack):
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    head_loss(model.train(), images.floats(), images.labels, attack).backward()
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.head.weight.grad.any()


def test_known_features_are_those_of_the_rows_and_computed_once(model, images, monkeypatch):
    part = images.take(torch.arange(3, 200, 7).flip(0))  # as when others are held out
    passes, forward = [], model.features
    monkeypatch.setattr(model, "features", lambda x: passes.append(len(x)) or forward(x))
    model.train()
    known = KnownFeatures(model, part)
    for chosen in (torch.tensor([5, 0, 11]), torch.tensor([2, 2])):
        with norm_banks.evaluation(model):
            expected = forward(part.take(chosen).floats())
        torch.testing.assert_close(known(part.rows[chosen]), expected)
    assert passes == [len(part)]
    assert model.training


def test_features_that_exceed_the_memory_are_not_kept(model, images, monkeypatch):
    known = KnownFeatures(model, images)
    assert known.fit()
    monkeypatch.setattr(linear_head, "memory", lambda device: 8 * 4 * len(images) * model.head.in_features - 8)
    assert not known.fit()


@pytest.mark.e2e
def test_the_gradient_at_a_zero_head_is_softmax_regressions(model, images):
    zero_head(model)
    loss = head_loss(model, images.floats(), images.labels)
    assert loss.item() == pytest.approx(torch.tensor(10.0).log().item())
    loss.backward()
    with torch.no_grad():
        features = model.features(images.floats())
    # d/dW of the mean cross-entropy at W = 0: (1/10 - onehot)^T features / n
    residual = 0.1 - F.one_hot(images.labels, 10).float()
    torch.testing.assert_close(model.head.weight.grad, residual.T @ features / 200, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.head.bias.grad, residual.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.e2e
def test_adversarial_images_cost_more(model, images):
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 5)
    x, y = images.floats(), images.labels
    assert head_loss(model, x, y, attack) > head_loss(model, x, y) + 0.01


@pytest.mark.e2e
@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_exact_head_has_no_gradient_left(model, images, decay):
    model.eval()
    loss = solve_head(model, images, decay)
    assert loss == pytest.approx(head_loss(model, images.floats(), images.labels).item(), abs=1e-4)
    objective = head_loss(model, images.floats(), images.labels) + decay / 2 * (model.head.weight**2).sum()
    weight, bias = torch.autograd.grad(objective, [model.head.weight, model.head.bias])
    assert weight.abs().max() < 2e-4
    assert bias.abs().max() < 2e-4


@pytest.mark.parametrize("present", [2, 3, 4])
@pytest.mark.parametrize("classes", [4, 10])
def test_the_exact_head_minimizes_the_same_objective_for_two_classes_as_for_more(present, classes):
    torch.manual_seed(0)
    y = torch.arange(60) % present
    x = torch.randn(60, 5, dtype=torch.float64) + y.unsqueeze(1)
    weight, bias = (each.requires_grad_() for each in fit_head(x, y, classes, 1e-2))
    objective = F.cross_entropy(x @ weight.T + bias, y) + 1e-2 / 2 * (weight**2).sum()
    for gradient in torch.autograd.grad(objective, [weight, bias]):
        assert gradient.abs().max() < 1e-6


def test_the_exact_head_knows_two_classes_and_absent_ones(images):
    few = images.take((images.labels < 2).nonzero().squeeze(1))
    for classes in ("01", "0123"):
        torch.manual_seed(0)
        model = Classifier(spec(classes=classes))
        for _ in range(5):
            model(few.floats())
        solve_head(model.eval(), few, 1e-3)
        assert set(predictions(model, few).tolist()) <= {0, 1}
        objective = head_loss(model, few.floats(), few.labels)
        assert objective < 0.69


def test_the_exact_head_of_one_class_predicts_it():
    weight, bias = fit_head(torch.rand(5, 3), torch.full((5,), 2), 4, 1e-3)
    assert weight.shape == (4, 3)
    assert bias.softmax(0).tolist() == [0, 0, 1, 0]
    assert not weight.any()
