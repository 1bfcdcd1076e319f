import copy

import pytest
import torch
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.models import low_rank, norm_banks
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.fusion import foldable, folded, folding
from acl_plugin.models.wrapped import wrap_encoder
from conftest import spec

pytestmark = pytest.mark.numeric
SHAPE = (3, 16, 16)


def trained(network, *banks):
    """Train a network's statistics and weights a little, in float64."""
    torch.manual_seed(0)
    network.double()
    for bank in banks or ((),):
        network(torch.rand(8, *SHAPE, dtype=torch.float64) * (1 + len(bank)), *bank)
    for norm in norms(network):
        if norm.affine:
            nn.init.normal_(norm.weight)
    return network.eval()


def encoder(*banks, backbone="resnet10t"):
    kwargs = None if backbone == "resnet10t" else {}
    return trained(Encoder(spec(SHAPE, backbone, kwargs), banks or ("clean",)), *((bank,) for bank in banks))


def runs_of_norms(model, run):
    """Return how many norms of the backbone run in ``run()``."""
    calls = []
    hooks = [norm.register_forward_hook(lambda *_: calls.append(1)) for norm in norms(model.backbone)]
    run()
    for hook in hooks:
        hook.remove()
    return len(calls)


def norms(network):
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def images(count=4):
    return torch.rand(count, *SHAPE, dtype=torch.float64)


def gradient(function, x):
    x = x.clone().requires_grad_()
    output = function(x)
    return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]


def assert_same(one, two, x):
    for a, b in zip(gradient(one, x), gradient(two, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


def test_no_batch_norm_is_left_in_the_copy():
    model = trained(Classifier(spec(SHAPE, "resnet10t", classes="abcd")))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    faster = folded(model, images())
    assert not norms(faster)
    assert norms(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert_same(faster, model, images())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("backbone", "kept"),
    [
        ("resnet18", 0),
        ("wide_resnet50_2", 0),
        ("tf_efficientnet_lite0", 0),
        ("mobilenetv3_small_050", 0),
        ("regnetx_002", 0),
        ("ghostnet_050", 0),
        ("densenet121", 62),  # those before a convolution
    ],
)
def test_any_network_keeps_function_and_gradient(backbone, kept):
    network = trained(create_backbone(spec((3, 32, 32), backbone, {}))[0])
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    faster = folded(network, x)
    assert len(norms(faster)) == kept
    assert_same(faster, network, x)


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv3_small_050"])
def test_passes_of_each_norm_bank_are_folded(backbone):
    model, x = encoder("clean", "adv", backbone=backbone), images()
    for bank in ("adv", "clean"):
        plain = gradient(lambda x, bank=bank: model.features(x, bank), x)
        with folding(model):
            fast = gradient(lambda x, bank=bank: model.features(x, bank), x)
            assert not runs_of_norms(model, lambda bank=bank: model.features(x, bank))
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9 * plain[1].abs().max().item())


def test_each_attack_takes_the_weights_of_its_time():
    model, x = encoder("clean", "adv"), images()
    for _ in range(2):
        with folding(model):
            fast = model(x, "adv")
        torch.testing.assert_close(fast, model(x, "adv"), rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1.5)


def test_an_attack_runs_no_batch_norm_in_the_backbone_and_leaves_the_network():
    model, x = encoder("clean", "adv"), images()
    layers, state = list(model.modules()), copy.deepcopy(model.state_dict())
    attack = InnerAttack(ThreatModel("Linf", "8/255"), steps=2)

    def run():
        attack.pairwise(model, x, x.flip(3), norm_bank="adv")

    run()  # finds the layers
    assert not runs_of_norms(model, run)
    assert list(model.modules()) == layers
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_batch_statistics_inside_an_attack_are_not_folded():
    model, x = encoder("clean", "adv"), images()
    with norm_banks.frozen_statistics(model), norm_banks.training(model):
        plain = model.features(x, "adv")
    with folding(model), norm_banks.frozen_statistics(model), norm_banks.training(model):
        torch.testing.assert_close(model.features(x, "adv"), plain)


def test_a_changed_network_is_examined_again():
    model, x = encoder(), images()
    with folding(model):
        model.features(x)
    model.backbone.conv1 = nn.Sequential(model.backbone.conv1, nn.Tanh())
    plain = model.features(x)
    with folding(model):
        torch.testing.assert_close(model.features(x), plain)


def test_copies_fold_their_own_weights():
    model, x = encoder(), images()
    with folding(model):
        model.features(x)
        other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    with folding(other):
        fast = other.features(x)
    torch.testing.assert_close(fast, other.features(x))


def test_the_search_for_layers_draws_no_random_numbers():
    model, x = encoder(), images()
    state = torch.get_rng_state()
    with folding(model):
        model.features(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_low_rank_branches_are_not_folded():
    model, x = encoder(), images()
    low_rank.add_branch(model.backbone, 2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    with folding(model):
        fast = model.features(x)
        with low_rank.without_branch(model):
            without = model.features(x)
    torch.testing.assert_close(fast, model.features(x))
    with low_rank.without_branch(model):
        torch.testing.assert_close(without, model.features(x))


class Twice(nn.Module):
    """Use the output of the convolution twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


class Again(Twice):
    """Run both layers twice."""

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) + self.norm(self.conv(x.square())).mean((2, 3))


class Doubled(nn.BatchNorm2d):
    """Norm with a function of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Float32(Twice):
    """Compute in float32 only."""

    def forward(self, x):
        return self.norm(nn.functional.conv2d(x.float(), self.conv.weight.float()).to(x)).mean((2, 3))


def sequence(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "network",
    [
        Twice(),
        Again(),
        Float32(),
        sequence(nn.Conv2d(3, 8, 3), Doubled(8)),
        sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        sequence(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        nn.Sequential(nn.Flatten(2), nn.Linear(256, 3), nn.BatchNorm1d(3), nn.Flatten()),
    ],
    ids=lambda network: type(network).__name__,
)
def test_layers_that_cannot_be_folded_stay(network):
    network = trained(network)
    assert foldable(network, images()) == []
    assert folded(network, images()) is network
    model = wrap_encoder(network, SHAPE).eval()
    plain = model.features(images(4)[:1].expand(4, -1, -1, -1))
    assert plain.shape[0] == 4


@pytest.mark.parametrize(
    "network",
    [
        sequence(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        sequence(nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8, affine=False)),
        sequence(nn.Conv2d(3, 6, 3, groups=3), nn.SyncBatchNorm(6)),
        nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8)),
    ],
    ids=["inplace", "no weights", "groups", "linear"],
)
def test_wrapped_networks_are_folded(network):
    model, x = wrap_encoder(trained(network), SHAPE).eval(), images()
    assert len(foldable(model.backbone, x)) == 1
    plain = gradient(model.features, x)
    with folding(model):
        fast = gradient(model.features, x)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)
