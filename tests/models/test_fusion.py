import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.models import fusion, low_rank, norm_banks
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.fusion import foldable, folded, folding
from acl_plugin.models.recompute import recompute_blocks
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


def assert_folds_as(model, x, *args):
    """Check features and gradient inside the context against those outside."""
    plain = gradient(lambda x: model.features(x, *args), x)
    with folding(model):
        fast = gradient(lambda x: model.features(x, *args), x)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9 * plain[1].abs().max().item())


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv3_small_050"])
def test_passes_of_each_norm_bank_are_folded(backbone):
    model, x = encoder("clean", "adv", backbone=backbone), images()
    for bank in ("adv", "clean"):
        assert_folds_as(model, x, bank)
    assert len(model.folding._pairs) == len(norms(model.backbone)) / 2


def scale_all(model, factor):
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(factor)


def test_each_attack_takes_the_weights_of_its_time():
    model, x = encoder("clean", "adv"), images()
    for _ in range(2):
        assert_folds_as(model, x, "adv")
        scale_all(model, 1.5)


def test_an_attack_runs_no_batch_norm_in_the_backbone_and_leaves_the_network():
    model, x = encoder("clean", "adv"), images()
    layers, state = list(model.modules()), copy.deepcopy(model.state_dict())
    moved = []
    attack = InnerAttack(
        ThreatModel("Linf", "8/255"), steps=2, on_moved=lambda share: moved.append(model.folding.active)
    )
    attack.pairwise(model, x, x.flip(3), norm_bank="adv")
    calls, norm = [], model.backbone.bn1.banks["adv"]
    norm.forward = lambda x: calls.append(1) or nn.BatchNorm2d.forward(norm, x)
    attack.pairwise(model, x, x.flip(3), norm_bank="adv")
    assert not calls
    assert moved == [False, False]
    assert list(model.modules()) == layers
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_layers_are_put_back_after_an_error():
    model = encoder("clean", "adv")
    layers = list(model.modules())
    with folding(model), pytest.raises(RuntimeError):
        model.features(torch.rand(2, 5, 16, 16, dtype=torch.float64))
    assert list(model.modules()) == layers
    assert not model.folding.active


def test_batch_statistics_inside_an_attack_are_not_folded():
    model, x = encoder("clean", "adv"), images()
    with norm_banks.frozen_statistics(model), norm_banks.training(model):
        plain = model.features(x, "adv")
    with folding(model), norm_banks.frozen_statistics(model), norm_banks.training(model):
        torch.testing.assert_close(model.features(x, "adv"), plain)


def test_a_norm_alone_in_training_mode_is_not_folded():
    model, x = encoder(), images()
    model.backbone.bn1.train()
    with norm_banks.frozen_statistics(model):
        plain = model.features(x)
        with folding(model):
            torch.testing.assert_close(model.features(x), plain)


def test_statistics_that_a_pass_changed_are_folded_again():
    model, x = encoder("clean", "adv"), images()
    with folding(model):
        model.features(x, "adv")
        with norm_banks.training(model):
            model.features(3 * x, "adv")
        fast = model.features(x, "adv")
    torch.testing.assert_close(fast, model.features(x, "adv"))


def test_a_changed_network_is_examined_again():
    model, x = encoder(), images()
    with folding(model):
        model.features(x)
    model.backbone.conv1 = nn.Sequential(model.backbone.conv1, nn.Tanh())
    assert_folds_as(model, x)


def test_a_pruned_layer_and_a_norm_without_statistics_stay():
    model, x = encoder(), images()
    assert_folds_as(model, x)
    model.to(memory_format=torch.contiguous_format)  # as pruning takes it
    prune.l1_unstructured(model.backbone.layer1[0].conv1, "weight", 0.5)
    norm = norms(model.backbone)[-1]
    norm.running_mean = norm.running_var = None
    assert_folds_as(model, x)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_networks_with_hooks_are_not_folded(register):
    model, x, seen = encoder(), images(), []
    assert_folds_as(model, x)
    getattr(model.backbone.conv1, register)(lambda *given: seen.append(given))
    with folding(model):
        gradient(model.features, x)
    assert len(seen) == 1


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_fold_their_own_weights(twin):
    model, x = encoder(), images()
    with folding(model):
        model.features(x)
        other = twin(model)
    assert not other.folding.active
    scale_all(other, 0.5)
    assert_folds_as(other, x)


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
    assert_folds_as(model, x)
    with low_rank.without_branch(model):
        assert_folds_as(model, x)


@pytest.mark.parametrize("banks", [("clean",), ("clean", "adv")])
def test_blocks_that_compute_again_have_the_same_gradient(banks):
    model, x = encoder(*banks), images()
    plain = gradient(lambda x: model.features(x, banks[-1]), x)
    recompute_blocks(model.backbone)
    with folding(model):
        fast = gradient(lambda x: model.features(x, banks[-1]), x)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9 * plain[1].abs().max().item())


def test_autocast_may_change_inside_the_context():
    model, x = encoder("clean", "adv").float(), images().float()
    with folding(model):
        with torch.autocast("cpu", torch.bfloat16):
            low = model.features(x, "adv")
        high = model.features(x, "adv")
        with torch.autocast("cpu", torch.bfloat16):
            again = model.features(x, "adv")
    assert low.dtype == again.dtype == torch.bfloat16
    assert torch.equal(low, again)
    torch.testing.assert_close(high, model.features(x, "adv"), rtol=1e-4, atol=1e-4)


def test_layers_of_lower_precision_than_their_norm_keep_it():
    network = nn.Sequential(nn.Conv2d(3, 8, 3).bfloat16(), nn.BatchNorm2d(8)).eval()
    (_, _, conv), _ = fusion._swaps(network, [("0", "1")])
    assert conv.weight.dtype == conv.bias.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_compiled_backbone_is_compiled_once_for_all_attacks():
    from torch._dynamo.testing import CompileCounterWithBackend

    model, x = encoder("clean", "adv"), images()
    plain = gradient(lambda x: model.features(x, "adv"), x)
    counter = CompileCounterWithBackend("aot_eager")
    model.backbone.compile(backend=counter)
    attack, compiled = InnerAttack(ThreatModel("Linf", "8/255"), steps=2), []
    for _ in range(3):
        attack.pairwise(model, x, x.flip(3), norm_bank="adv")
        scale_all(model, 1.01)
        compiled.append(counter.frame_count)
    assert compiled[0] == compiled[-1] > 0
    scale_all(model, 1.01**-3)
    with norm_banks.inference(model), folding(model):
        fast = gradient(lambda x: model.features(x, "adv"), x)
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-6 * plain[1].abs().max().item())


def test_a_network_of_the_user_is_not_folded():
    model = wrap_encoder(trained(sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))), SHAPE).eval()
    layers, seen = list(model.backbone.modules()), []
    model.backbone.module[1].register_forward_hook(lambda *_: seen.append(1))
    x = images()
    InnerAttack(ThreatModel("Linf", "8/255"), steps=2).bank(model, x, torch.rand_like(model(x)))
    assert list(model.backbone.modules()) == layers
    assert len(seen) == 3


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


class Branch(Twice):
    """Use the output twice in a branch that is off at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = self.conv(x)
        return (self.scale * (self.norm(y) + y)).mean((2, 3))


class Checkpointed(Twice):
    """Compute the layers again in the backward pass."""

    def forward(self, x):
        return checkpoint(lambda x: self.norm(self.conv(x)).relu().mean((2, 3)), x, use_reentrant=False)


class Doubled(nn.BatchNorm2d):
    """Norm with a function of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Float32(Twice):
    """Compute without the module of the convolution."""

    def forward(self, x):
        return self.norm(nn.functional.conv2d(x.float(), self.conv.weight.float()).to(x)).mean((2, 3))


class Broken(Twice):
    """Fail in float64."""

    def forward(self, x):
        return self.norm(self.conv(x)) + torch.ones(8, 8) @ torch.ones(8, 8, dtype=x.dtype)


def sequence(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "network",
    [
        Twice(),
        Again(),
        Branch(),
        Checkpointed(),
        Float32(),
        Broken(),
        sequence(nn.Conv2d(3, 8, 3), Doubled(8)),
        sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        sequence(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        sequence(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
        sequence(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Flatten(2), nn.Linear(256, 3), nn.BatchNorm1d(3), nn.Flatten()),
    ],
    ids=lambda network: type(network).__name__,
)
def test_layers_that_cannot_be_folded_stay(network):
    x = images().float()
    assert foldable(network.eval(), x) == []
    assert folded(network, x) is network


@pytest.mark.parametrize(
    "network",
    [
        sequence(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
        sequence(nn.Conv2d(3, 6, 3, groups=3), nn.SyncBatchNorm(6)),
        nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8)),
    ],
    ids=["inplace", "no weights", "groups", "linear"],
)
def test_other_layers_are_folded(network):
    network, x = trained(network), images()
    assert len(foldable(network, x)) == 1
    assert_same(folded(network, x), network, x)
