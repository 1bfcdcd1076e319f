import pytest
import torch
import torch.nn.functional as F

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.probing.linear_head import head_loss, solve_head, zero_head
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
