import pytest
import torch
from torch import nn

from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.norm_banks import names_of
from acl_plugin.models.projectors import PROJECTORS, create_projector
from conftest import spec

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("name", "layers", "size"), [
    ("three_layer", [(16, 16, True), (16, 16, False), (16, 16, False)], 16),
    ("wide", [(16, 64, True), (64, 128, True)], 128),
    ("two_layer", [(16, 16, True), (16, 128, True)], 128),
    ("bottleneck", [(16, 16, True), (16, 128, True)], 128),
    ("two_layer_norm", [(16, 16, True), (16, 16, False)], 16),
    ("mlp_24_8", [(16, 24, True), (24, 8, True)], 8),
    ("byol", [(16, 128, True), (128, 256, True)], 256),
    ("simsiam", [(16, 64, False), (64, 64, False), (64, 64, False)], 64),
    ("expander", [(16, 64, False), (64, 64, False), (64, 64, False)], 64),
    ("identity", [], 16),
])  # fmt: skip
def test_projectors_have_the_published_layers(name, layers, size):
    projector = create_projector(name, 16)
    linear = [m for m in projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is not None) for m in linear] == layers
    assert projector(torch.rand(4, 16)).shape == (4, size)


@pytest.mark.parametrize("name", PROJECTORS)
def test_an_encoder_has_any_projector(name):
    model = Encoder(spec(), ("clean", "adv"), name)
    assert model(torch.rand(3, 1, 8, 8), "adv").shape[0] == 3
    normed = ("three_layer", "two_layer_norm", "byol", "simsiam", "expander")
    banks = ["clean", "adv"] if name in normed else []
    assert names_of(model.projector) == banks  # AdvCL's norm is one for all; the others have none


@pytest.mark.parametrize(("name", "hidden"), [("byol", 4096), ("simsiam", 2048), ("expander", 8192)])
def test_hidden_sizes_of_a_resnet50_are_the_published_ones(name, hidden):
    with torch.device("meta"):
        assert PROJECTORS[name](2048)[0].out_features == hidden


def test_unknown_projector():
    with pytest.raises(UsageError, match="unknown projector 'wid'; the nearest: wide"):
        Encoder(spec(), projector="wid")
