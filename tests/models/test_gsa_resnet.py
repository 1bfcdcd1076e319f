"""The networks of GSA-RSL's code against a forward pass written out."""

import pytest
import timm
import torch
import torch.nn.functional as F

from acl_plugin.models.backbones import create_backbone
from conftest import spec


def norm(m, x):
    return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)


def written_out(network, x):
    """Only a block that changes the shape adds its input."""
    x = F.relu(norm(network.bn1, network.conv1(x)))
    for block in [block for layer in (1, 2, 3, 4) for block in getattr(network, f"layer{layer}")]:
        numbers = [n for n in (1, 2, 3) if hasattr(block, f"conv{n}")]
        out = x
        for n in numbers:
            out = norm(getattr(block, f"bn{n}"), getattr(block, f"conv{n}")(out))
            out = F.relu(out) if n < numbers[-1] else out
        if any(True for _ in block.downsample.parameters()):
            out = out + norm(block.downsample[1], block.downsample[0](x))
        x = F.relu(out)
    return x.mean((2, 3))


@pytest.mark.parametrize("name", ["gsa_resnet18", "gsa_resnet50"])
def test_identities_are_missing_and_names_are_those_of_a_resnet(name):
    torch.manual_seed(0)
    network, _ = create_backbone(spec((3, 16, 16), name, {"channels": [8, 8, 16, 16]}))
    for key, value in network.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(
                torch.rand_like(value) + 0.5 if key.endswith(("var", "weight")) else torch.randn_like(value) / 5
            )
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), written_out(network, x), atol=1e-4, rtol=1e-4)
    usual = timm.create_model(name.removeprefix("gsa_"), num_classes=0, channels=[8, 8, 16, 16]).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items() if k != "conv1.weight"} == {
        k: v.shape for k, v in usual.items() if k != "conv1.weight"
    }
