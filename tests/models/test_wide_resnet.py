"""WideResNets for small images against RobustBench's, and in all places that take a network of timm."""

import pytest
import timm
import torch
import torch.nn.functional as F

from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.timm_names import backbone_names
from acl_plugin.models.wide_resnet import SIZES
from conftest import spec
from reference import with_statistics

pytestmark = pytest.mark.numeric

TINY = {"depth": 10, "width": 1}
PARAMETERS = {"wrn28_10": 36_479_194, "wrn34_10": 46_160_474, "wrn34_20": 184_531_674, "wrn70_16": 266_796_506}
"""Numbers of parameters of RobustBench's networks with 10 classes."""


def written_out(state, x, depth):
    """The forward pass of TRADES' WideResNet: (B, 3, 32, 32) -> logits."""

    def norm(h, name):
        return F.relu(
            F.batch_norm(h, *(state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
        )

    h = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for number in range((depth - 4) // 6):
            name, stride = f"block{stage}.layer.{number}", 2 if stage > 1 and number == 0 else 1
            inner = norm(h, f"{name}.bn1")
            out = norm(F.conv2d(inner, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn2")
            out = F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.convShortcut.weight" in state:
                h = F.conv2d(inner, state[f"{name}.convShortcut.weight"], stride=stride)
            h = h + out
    return F.avg_pool2d(norm(h, "bn1"), 8).flatten(1) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_the_forward_pass_is_that_of_trades(depth, width):
    torch.manual_seed(0)
    network = with_statistics(timm.create_model("wrn34_10", depth=depth, width=width))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), written_out(network.state_dict(), x, depth), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_names_shapes_and_numbers_of_parameters_are_robustbenchs(name):
    depth, width = SIZES[name]
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    theirs = pytest.importorskip("robustbench.model_zoo.architectures.wide_resnet")
    deepmind = pytest.importorskip("robustbench.model_zoo.architectures.dm_wide_resnet")
    with torch.device("meta"):
        same, other = theirs.WideResNet(depth, 10, width), deepmind.DMWideResNet(10, depth, width)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in same.state_dict().items()}
    assert sum(p.numel() for p in other.parameters()) == PARAMETERS[name]


def test_robustbenchs_weights_give_its_logits():
    theirs = pytest.importorskip("robustbench.model_zoo.architectures.wide_resnet")
    torch.manual_seed(0)
    same = with_statistics(theirs.WideResNet(16, 10, 2))
    network = timm.create_model("wrn28_10", depth=16, width=2).eval()
    network.load_state_dict(same.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), same(x), atol=1e-5, rtol=1e-5)


def test_it_is_a_network_of_timm():
    assert set(SIZES) <= set(backbone_names("wrn*"))
    network = timm.create_model("wrn28_10", num_classes=0, in_chans=1, **TINY)
    x = torch.rand(2, 1, 16, 16)
    assert network(x).shape == (2, network.num_features) == (2, 64)
    features = network.forward_features(x)
    assert features.shape == (2, 64, 4, 4)
    network.reset_classifier(7)
    assert network(x).shape == (2, 7) == (2, network.get_classifier().out_features)
    assert network.forward_head(features, pre_logits=True).shape == (2, 64)
    network.reset_classifier(0, "")
    assert network(x).shape == (2, 64, 4, 4)
    maps = timm.create_model("wrn28_10", in_chans=1, features_only=True, **TINY)
    assert [(m.shape[1], 16 // m.shape[2]) for m in maps(x)] == [(16, 1), (32, 2), (64, 4)]
    assert maps.feature_info.channels() == [16, 32, 64]
    assert maps.feature_info.reduction() == [1, 2, 4]


@pytest.mark.parametrize("wrong", [{"depth": 18}, {"depth": 4}, {"width": 0}])
def test_a_depth_that_is_no_number_of_blocks_is_refused(wrong):
    with pytest.raises(ValueError, match="allowed are depth 6n"):
        timm.create_model("wrn28_10", **wrong)


def test_norm_banks_are_independent_and_exported():
    torch.manual_seed(0)
    encoder = Encoder(spec((3, 16, 16), "wrn28_10", TINY), ("clean", "adv"))
    x = torch.rand(4, 3, 16, 16)
    for _ in range(3):
        encoder(x.square(), "adv")
    encoder.eval()
    plain = norm_banks.export(encoder.backbone, "adv")
    assert plain.state_dict().keys() == timm.create_model("wrn28_10", num_classes=0, **TINY).state_dict().keys()
    assert not torch.allclose(encoder.features(x, "clean"), encoder.features(x, "adv"))
    torch.testing.assert_close(plain(encoder.preprocess(x)), encoder.features(x, "adv"))
