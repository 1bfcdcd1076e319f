import pytest
import torch
import torchattacks
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel

W = torch.tensor([[0.3, -0.7, 0.0, 1.2], [-0.5, 0.1, 0.9, -0.2]])


def distances(x):
    return 1 + (x.flatten(1) - 0.5).matmul(W.T).pow(2).sum(1)


@pytest.fixture
def x():
    return torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def corners(x, eps):
    """The largest value of a convex loss in the box is at a corner."""
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    chosen = torch.cartesian_prod(*4 * [torch.tensor([0.0, 1.0])])
    every = low[:, None] + chosen[None] * (high - low)[:, None]
    return torch.stack([distances(each.reshape(-1, 1, 2, 2)) for each in every]).amax(1)


@pytest.mark.e2e
@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_it_finds_the_largest_loss_of_a_convex_function(x, eps):
    attack = InnerAttack(ThreatModel("Linf", eps), "AutoPGD", 30, {"n_restarts": 60})
    moved = attack.scalar(nn.Identity(), x, distances, generator=torch.Generator().manual_seed(0))
    assert (moved - x).abs().max() <= eps + 1e-6
    torch.testing.assert_close(distances(moved), corners(x, eps), rtol=1e-4, atol=1e-4)


def test_l2_moves_along_a_linear_loss(x):
    direction = torch.tensor([0.6, 0.0, 0.0, -0.8])
    x = 0.4 + 0.2 * x
    attack = InnerAttack(ThreatModel("L2", 0.2), "AutoPGD", 50)
    moved = attack.scalar(nn.Identity(), x, lambda images: 5 + images.flatten(1) @ direction)
    torch.testing.assert_close(moved, x + 0.2 * direction.view(1, 1, 2, 2), rtol=1e-3, atol=1e-3)


def test_samples_that_are_misclassified_go_on_to_rise(x):
    """torchattacks' APGD leaves them as they are, which a loss of distances is from the start."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    labels = (model(x).argmax(1) + 1) % 3
    apgd = torchattacks.APGD(model, eps=0.1, steps=20)
    assert torch.equal(apgd(x, labels), x)
    moved = InnerAttack(ThreatModel("Linf", 0.1), "AutoPGD", 20).classifier(model, x, labels)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(model(moved), labels) > loss(model(x), labels)).all()


def test_it_is_as_strong_as_pgd_or_stronger(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)).eval()
    benign = model(x).detach()

    def loss(images):
        return 1 + (model(images) - benign).square().sum(1)

    threat = ThreatModel("Linf", 0.2)
    strongest = [
        loss(InnerAttack(threat, name, 100, kwargs).scalar(model, x, loss)).sum().item()
        for name, kwargs in (("AutoPGD", {"n_restarts": 3}), ("PGD", {"alpha": 0.02}))
    ]
    assert strongest[0] >= 0.99 * strongest[1]
