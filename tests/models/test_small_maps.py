import copy
import os
import pickle

import pytest
import torch
import torch.fx
from torch import nn

from acl_plugin.models import small_maps as rooms
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.fusion import folded
from acl_plugin.models.small_maps import IN_A_ROW, SmallMapConv2d, small_maps
from conftest import require_compiler, spec

pytestmark = pytest.mark.numeric
GEOMETRIES = {
    "stage": ((4, 4), {"kernel_size": 3, "padding": 1}),
    "stride": ((8, 8), {"kernel_size": 3, "padding": 1, "stride": 2}),
    "even kernel": ((8, 8), {"kernel_size": 2, "stride": 2}),
    "no padding": ((5, 5), {"kernel_size": 3}),
    "dilation": ((4, 4), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "oblong": ((4, 7), {"kernel_size": (5, 3), "padding": (2, 1), "stride": (1, 2)}),
    "much padding": ((1, 1), {"kernel_size": 3, "padding": 2}),
    "stride above the kernel": ((6, 7), {"kernel_size": (3, 2), "stride": 3}),
    "large kernel": ((8, 8), {"kernel_size": 5, "padding": 1, "stride": 2}),
}


@pytest.fixture
def any_size(monkeypatch):
    """Layers of any size gain."""
    monkeypatch.setattr(rooms, "FEWEST_WEIGHTS", 1)


def outputs(conv, x):
    """Return the output, and the gradients of its squares with respect to images and weights."""
    x = x.clone().requires_grad_()
    y = conv(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])


def rows_of(conv, x):
    """Return the shapes that the convolution itself takes."""
    seen, whole = [], nn.Conv2d._conv_forward
    conv._conv_forward = lambda x, *given: seen.append(x.shape) or whole(conv, x, *given)
    try:
        conv(x)
    finally:
        del conv._conv_forward
    return seen[0]


@pytest.mark.parametrize("count", [2, 5, IN_A_ROW, IN_A_ROW + 1, 2 * IN_A_ROW])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_output_and_gradients_are_those_of_the_convolution(geometry, count, any_size):
    torch.manual_seed(0)
    size, given = GEOMETRIES[geometry]
    plain = nn.Conv2d(3, 4, **given)
    fast = small_maps(copy.deepcopy(plain))
    x = torch.rand(count, 3, *size)
    taken = rows_of(fast, x)
    assert taken[0] == -(-count // IN_A_ROW)
    assert taken[3] >= min(count, IN_A_ROW) * size[1]
    for ours, theirs in zip(outputs(fast, x), outputs(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert fast(x).is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_gradients_are_those_of_the_convolution(any_size):
    def curved(conv, x):
        (gradient,) = torch.autograd.grad(conv(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, *conv.parameters()])

    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.rand(5, 3, 4, 4, requires_grad=True)
    for ours, theirs in zip(curved(small_maps(copy.deepcopy(plain)), x), curved(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_no_image_reaches_another(any_size):
    conv, x = small_maps(nn.Conv2d(3, 4, 3, padding=1)), torch.rand(20, 3, 4, 4)
    before = conv(x)
    x[7] = torch.nan
    after = conv(x)
    assert after[7].isnan().all()
    assert torch.equal(before[torch.arange(20) != 7], after[torch.arange(20) != 7])


def test_under_autocast(any_size):
    conv, x = small_maps(nn.Conv2d(16, 8, 3, padding=1)), torch.rand(5, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), nn.Conv2d.forward(conv, x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(1, 3, 4, 4),
        torch.rand(0, 3, 4, 4),
        torch.rand(3, 4, 4),
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 3, 1, 1),
        torch.rand(2, 3, 4, 4, dtype=torch.float64),
        torch.rand(2, 3, 4, 4, device="meta"),
    ],
    ids=["one image", "no image", "no batch", "larger map", "one pixel", "float64", "other device"],
)
def test_other_inputs_are_taken_as_they_are(x, any_size):
    conv = small_maps(nn.Conv2d(3, 4, 3, padding=1)).to(x)
    assert rows_of(conv, x) == x.shape


def test_a_window_that_does_not_fit_is_refused_as_before(any_size):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        small_maps(nn.Conv2d(3, 4, 5))(torch.rand(2, 3, 4, 4))


def exported(conv, x, **options):
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(conv, (x,), dynamic_shapes=({0: batch},), **options).module()


@pytest.mark.parametrize(
    "record",
    [
        lambda conv, x: exported(conv, x, strict=False),
        pytest.param(
            lambda conv, x: exported(conv, x, strict=True),
            marks=pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch does not tell"),
        ),
        torch.jit.trace,
        lambda conv, x: torch.fx.symbolic_trace(nn.Sequential(conv)),
    ],
    ids=["export", "strict export", "trace", "symbols"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_recorded_layer_takes_any_number_of_images(record, any_size):
    conv, x = small_maps(nn.Conv2d(3, 4, 3, padding=1)).requires_grad_(False), torch.rand(IN_A_ROW + 3, 3, 4, 4)
    program = record(conv, x[:2])
    for count in (1, 2, len(x)):
        torch.testing.assert_close(program(x[:count]), nn.Conv2d.forward(conv, x[:count]))


SHAPES = ((20, 4), (33, 4), (20, 8), (17, 3), (31, 2), (5, 3), (1, 4))
"""Number of images and width, of whose second and third a compiler makes symbols."""


@pytest.mark.e2e
@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize(("backend", "shapes"), [("aot_eager", SHAPES), ("inductor", SHAPES[:3])])
def test_a_layer_that_others_compile_takes_any_size(backend, shapes, dynamic, any_size):
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain = nn.Conv2d(3, 4, 3, padding=1)
    fast = small_maps(copy.deepcopy(plain))
    compiled = torch.compile(fast, fullgraph=True, dynamic=dynamic, backend=backend)
    if backend == "inductor":
        require_compiler()
        if os.environ.get("ATEN_CPU_CAPABILITY") == "default" and hasattr(torch.compiler, "is_exporting"):
            pytest.skip("newer versions of inductor write vectors, which this setting hides from the C++ compiler")
    for count, width in shapes:
        x = torch.rand(count, 3, width, width)
        for ours, theirs in zip(outputs(compiled, x), outputs(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Own(nn.Conv2d):
    """Convolution with a function of its own."""


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(256, 256, 3),
        nn.Conv2d(1024, 1024, 1),
        nn.Conv2d(1024, 1024, 3, groups=8),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(512, 512, 3, padding="same"),
        Own(512, 512, 3),
    ],
    ids=["few weights", "1 x 1", "groups", "padding mode", "same", "own class"],
)
def test_other_layers_stay(conv):
    assert type(small_maps(conv)) is not SmallMapConv2d


@pytest.mark.parametrize("kind", [Encoder, Classifier])
def test_networks_have_them_and_the_same_state(kind):
    import timm

    network = kind(spec((3, 32, 32), "resnet18", {}, classes="ab" if kind is Classifier else "")).backbone
    names = [name for name, module in network.named_modules() if isinstance(module, SmallMapConv2d)]
    assert names == ["layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]
    assert list(network.state_dict()) == list(timm.create_model("resnet18", num_classes=0).state_dict())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(twin.layer4[0].conv1) is SmallMapConv2d


def test_a_folded_copy_of_a_users_network_has_them():
    network = nn.Sequential(nn.Conv2d(256, 512, 3), nn.BatchNorm2d(512), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert type(folded(network, torch.rand(2, 256, 6, 6))[0]) is SmallMapConv2d
    assert type(network[0]) is nn.Conv2d
