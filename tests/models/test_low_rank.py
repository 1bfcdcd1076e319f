import copy

import pytest
import timm
import torch
from torch import nn

from acl_plugin.models import low_rank, norm_banks
from acl_plugin.models.low_rank import LowRank, add_branch, merged, without_branch

NETWORKS = {
    "resnet10t": {"stem_width": 8, "channels": [8, 8, 16, 16]},
    "mobilenetv3_small_050": {},  # depthwise
    "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3},
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=0, **NETWORKS[request.param]).eval()


def fill(branch):
    for p in branch:
        p.data = 0.1 * torch.randn_like(p)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(3, 5, 3), nn.Conv2d(4, 6, (5, 3), groups=2), nn.Conv1d(3, 4, 5), nn.Linear(7, 2), nn.Conv3d(2, 3, 3)],
    ids=str,
)
def test_a_branch_adds_a_product_of_two_matrices(layer):
    weight = layer.weight.detach().clone()
    a, b = add_branch(nn.Sequential(layer), 2)
    assert torch.equal(layer.weight, weight)  # B is zero
    fill([a, b])
    added = ((layer.weight - weight) * 2).reshape(b.shape[0], a.shape[1])
    torch.testing.assert_close(added, b @ a, rtol=1e-4, atol=1e-5)
    side = weight.shape[2] if weight.ndim > 2 else 1
    assert a.shape[0] == b.shape[1] == 2 * side


def test_a_branch_is_used_kept_and_left_out(network):
    x = torch.randn(2, 3, 32, 32)
    keys, before = list(network.state_dict()), network(x).detach()
    branch = add_branch(network, 2)
    torch.testing.assert_close(network(x), before)
    fill(branch)
    after = network(x).detach()
    assert (after - before).abs().max() > 1e-4
    with without_branch(network):
        torch.testing.assert_close(network(x), before)
    torch.testing.assert_close(network(x), after)
    torch.testing.assert_close(merged(network)(x), after)
    torch.testing.assert_close(merged(network, keep=False)(x), before)
    assert list(merged(network).state_dict()) == keys
    assert any(isinstance(module, LowRank) for module in network.modules())  # itself unchanged


def test_copies_and_norm_banks_keep_the_branch(network):
    x = torch.randn(2, 3, 32, 32)
    network = norm_banks.add_banks(network, ("clean", "adv"))
    fill(add_branch(network, 1))
    for other in (copy.deepcopy(network), norm_banks.export(network, "adv")):
        torch.testing.assert_close(other(x), network(x))
    twin = copy.deepcopy(network)
    twin.load_state_dict(network.state_dict())
    fill(low_rank.add_branch(nn.Linear(2, 2), 1))


def test_a_network_has_one_branch():
    layer = nn.Linear(2, 2)
    add_branch(layer, 1)
    with pytest.raises(AssertionError):
        add_branch(layer, 1)
