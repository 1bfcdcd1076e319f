import pytest
import torch
from torch import nn

from acl_plugin.models.encoder import Classifier
from acl_plugin.models.fusion import folded
from conftest import spec

pytestmark = pytest.mark.numeric


def trained(backbone="resnet10t", kwargs=None, shape=(3, 16, 16)):
    torch.manual_seed(0)
    model = Classifier(spec(shape, backbone, kwargs, classes="abcd"))
    for _ in range(3):
        model(torch.rand(8, *shape))
    nn.init.normal_(model.head.weight)
    return model.eval()


def test_no_batch_norm_is_left_and_the_function_is_the_same():
    model = trained()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(8, 3, 16, 16)
    faster = folded(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in faster.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    other = torch.rand(16, 3, 16, 16)
    torch.testing.assert_close(faster(other), model(other), rtol=1e-4, atol=1e-4)
    a, b = other.clone().requires_grad_(), other.clone().requires_grad_()
    (one,) = torch.autograd.grad(faster(a).square().sum(), a)
    (two,) = torch.autograd.grad(model(b).square().sum(), b)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3 * two.abs().max().item())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [("vit_tiny_patch16_224", {"depth": 1}), ("mobilenetv3_small_050", {}), ("convnext_atto", {}), ("densenet121", {})],
)
def test_any_network_keeps_its_function(backbone, kwargs):
    model = trained(backbone, kwargs, (3, 32, 32))
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(folded(model, x)(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_network_that_cannot_be_traced_stays_as_it_is():
    class Branches(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :8] if x.sum() > 0 else -x.flatten(1)[:, :8]

    model = trained()
    model.backbone = Branches()
    model.head = nn.Linear(8, 4)
    assert folded(model, torch.rand(4, 3, 16, 16)) is model
