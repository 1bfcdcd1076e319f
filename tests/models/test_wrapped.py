"""Any module as an encoder: its features, preprocessing and banks, and the lines in which it is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acl_plugin import UsageError, wrap_encoder
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.protocol import is_encoder
from conftest import spec

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A small network with a head, a method and tokens."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward_features(self, x):
        return self.stem(x)

    def tokens(self, x):
        return self.stem(x).flatten(2).transpose(1, 2)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


class ReadsNorm(nn.Module):
    """Scales by the weights of its norm layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm(self.conv(x)) * self.norm.weight.view(-1, 1, 1)).mean((2, 3))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    net(torch.rand(16, *SHAPE))  # running statistics of its own
    return net


@pytest.fixture
def x():
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("features", "reference"),
    [
        (None, lambda net, x: net(x)),
        ("stem", lambda net, x: net.stem(x).mean((2, 3))),
        ("stem.0", lambda net, x: net.stem[0](x).mean((2, 3))),
        ("stem.1", lambda net, x: net.stem[:2](x).mean((2, 3))),
        ("head", lambda net, x: net(x)),
        ("forward_features", lambda net, x: net.stem(x).mean((2, 3))),
        (lambda module, x: module.tokens(x).amax(1), lambda net, x: net.stem(x).amax((2, 3))),
    ],
)
def test_features_are_what_was_named(net, x, features, reference):
    encoder = wrap_encoder(net, SHAPE, features=features, norm_banks=("clean", "adv")).eval()
    net.eval()
    expected = reference(net, x)
    assert encoder.size == expected.shape[1]
    for norm_bank in (None, "clean", "adv"):
        torch.testing.assert_close(encoder.features(x, norm_bank), expected)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_images_are_resized_scaled_and_normalized(net, x):
    given = {"input_size": (12, 10), "input_range": (-1, 1), "mean": [0.1, 0.2, 0.3], "std": 0.5}
    encoder = wrap_encoder(net, SHAPE, **given).eval()
    images = F.interpolate(x, (12, 10), mode="bilinear", align_corners=False) * 2 - 1
    images = (images - torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)) / 0.5
    torch.testing.assert_close(encoder.features(x), net.eval()(images))


def test_images_of_0_to_255(net, x):
    encoder = wrap_encoder(net, SHAPE, input_range=(0, 255), mean=127.5, std=60).eval()
    torch.testing.assert_close(encoder.features(x), net.eval()((255 * x - 127.5) / 60))


def test_the_users_module_stays_as_it_is(net, x):
    net.stem.eval()
    net.head.requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    encoder = wrap_encoder(net, SHAPE, norm_banks=("clean", "adv"))
    assert all(module.training for module in encoder.modules())
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(x, "adv").square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True] * 4 + [False] * 2
    assert [p.requires_grad for p in encoder.unwrap().parameters()] == [True] * 4 + [False] * 2


def test_a_layer_before_one_in_place_is_what_was_named(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(SHAPE[0], 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features = wrap_encoder(net, SHAPE, features="0").eval().features(x)
    torch.testing.assert_close(features, net[0](x).mean((2, 3)))
    assert (features < 0).any()


class ChannelsLast(nn.Module):
    """Maps (B, H, W, C), with or without a statement of it."""

    def __init__(self, **stated):
        super().__init__()
        self.conv = nn.Conv2d(SHAPE[0], 5, 3, padding=1)
        vars(self).update(stated)

    def forward(self, x):
        return self.conv(x).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("stated", "shape"),
    [({}, (SHAPE[0], 8, 8)), ({"num_features": 5}, (SHAPE[0], 8, 12)), ({"output_fmt": "NHWC"}, (SHAPE[0], 8, 12))],
)
def test_maps_with_channels_last_are_refused_and_their_mean_is_taken(stated, shape):
    net = ChannelsLast(**stated)
    with pytest.raises(UsageError, match="with channels last") as error:
        wrap_encoder(net, shape)
    assert error.value.parameter == "features"
    assert wrap_encoder(net, shape, features=lambda module, x: module(x).mean((1, 2))).size == 5
    assert wrap_encoder(net, shape, features=lambda module, x: module(x).permute(0, 3, 1, 2)).size == 5
    assert wrap_encoder(net.conv, shape).size == 5


@pytest.mark.parametrize("norm_bank", ["clean", "adv"])
def test_unwrapping_gives_the_trained_module_with_its_own_keys(net, x, norm_bank):
    encoder = wrap_encoder(net, SHAPE, norm_banks=("clean", "adv"))
    for name in ("clean", "adv"):
        encoder(x if name == "clean" else 0.3 * x, name)
    unwrapped = encoder.eval().unwrap(norm_bank)
    assert type(unwrapped) is Net
    assert unwrapped.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(unwrapped(x), encoder.features(x, norm_bank))
    other = encoder.features(x, "clean" if norm_bank == "adv" else "adv")
    assert not torch.allclose(unwrapped(x), other)


def test_a_norm_layer_that_is_used_twice_stays_one_layer(x):
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.Conv2d(3, 3, 1), norm)
    encoder = wrap_encoder(net, SHAPE, norm_banks=("clean", "adv"))
    layers = encoder.backbone.module
    assert layers[0] is layers[2]
    encoder(x, "adv")
    assert layers[0].banks["adv"].num_batches_tracked == 2
    assert layers[0].banks["clean"].num_batches_tracked == 0
    assert encoder.unwrap("adv").state_dict().keys() == net.state_dict().keys()


def test_double_precision_stays(net, x):
    encoder = wrap_encoder(net.double(), SHAPE)
    assert encoder(x.double()).dtype == torch.float64
    assert {p.dtype for p in encoder.parameters()} == {torch.float64}


def test_lazy_layers_are_built(x):
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(7))
    assert wrap_encoder(net, SHAPE).size == 7
    assert net[1].has_uninitialized_params()


def test_weights_of_inference_mode_are_trained(x):
    with torch.inference_mode():
        net = Net()
    encoder = wrap_encoder(net, SHAPE)
    encoder(x).square().sum().backward()
    assert encoder.unwrap().stem[0].weight.shape == net.stem[0].weight.shape
    assert encoder.backbone.module.stem[0].weight.grad.any()


def test_both_encoders_have_the_protocol(net):
    assert is_encoder(wrap_encoder(net, SHAPE))
    assert is_encoder(Encoder(spec()))
    assert not is_encoder(net)
    assert not is_encoder(Encoder)


def test_the_random_state_decides_the_projector_alone(net):
    torch.manual_seed(3)
    one = wrap_encoder(net, SHAPE).state_dict()
    torch.manual_seed(3)
    two = wrap_encoder(net, SHAPE, features="head").state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


class Refusing(nn.Module):
    """Features that no attack can work on."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.ones(3))

    def forward(self, x):
        features = x.mean((2, 3)) * self.weight
        if self.kind == "nan":
            return features / 0 * 0
        if self.kind == "no_grad":
            return features.detach()
        if self.kind == "tuple":
            return (features,)
        if self.kind == "of the batch":
            return features.sum(0, keepdim=True)
        return features[:, None] if self.kind == "tokens" else features.sum()


class InTraining(Net):
    """Goes wrong in training mode alone."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.training and self.kind == "error":
            raise RuntimeError("no mask")
        features = super().forward(x)
        return (features, features) if self.training else features


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (Net, {}, "module is the class Net: allowed is an instance of torch.nn.Module"),
        (lambda x: x, {}, "module is function: allowed is an instance"),
        (Refusing("nan"), {}, "features of random images, or their gradient, are not finite"),
        (Refusing("no_grad"), {}, "features have no gradient with respect to the images, which attacks need"),
        (Refusing("tuple"), {}, r"features of 2 images are tuple: allowed are \(B, D\).*pass features=lambda"),
        (Refusing("of the batch"), {}, r"features of 2 images are \(1, 3\)"),
        (Refusing("tokens"), {}, r"features of 2 images are \(2, 1, 3\).*tokens\[:, 0\] \(class token\)"),
        (Refusing("scalar"), {}, r"features of 2 images are \(\)"),
        (Net(), {"features": "tokens"}, r"features of 2 images are \(2, 64, 6\)"),
        (Net(), {"features": "stme"}, "unknown layer or method 'stme'; the nearest: stem"),
        (Net(), {"features": 3}, "features 3: allowed is None, a function"),
        (
            Net(),
            {"features": Net().tokens},
            "features 'tokens' does not take two arguments: .* a layer or method, such",
        ),
        (Net().half(), {}, r"weights in torch.float16; .*call float\(\)"),
        (Net().bfloat16(), {}, "weights in torch.bfloat16"),
        (InTraining("tuple"), {}, "features of 2 images are tuple: allowed are"),
        (InTraining("error"), {}, "fails in training mode: RuntimeError: no mask"),
        (nn.Conv2d(3, 4, 3, device="meta"), {}, "has weights on the meta device, without values; load them first"),
        (nn.Sequential(nn.LazyBatchNorm2d()), {}, "not initialized; call it on a batch of images first"),
        (Net(), {"features": lambda module, x: Net().to(x)(x)}, "do not depend on the weights"),
        (Net(), {"shape": (8, 8)}, r"shape \(8, 8\): allowed is \(C, H, W\)"),
        (Net(), {"shape": None}, r"shape None: allowed is \(C, H, W\)"),
        (Net(), {"shape": (1, 8, 8)}, r"does not take images of shape \(1, 8, 8\): RuntimeError"),
        (Net(), {"input_size": 0}, "input_size 0: allowed is a side"),
        (Net(), {"input_range": (1, 0)}, "input_range .*: allowed is .low, high. with low < high"),
        (
            Net(),
            {"mean": 128, "std": 58},
            r"mean 128: allowed is numbers in `input_range` \(0, 1\); for those of 8-bit",
        ),
        (Net(), {"mean": [0.5, -0.1, 0.5], "std": 1}, "mean .*: allowed is numbers in `input_range`"),
        (Net(), {"input_range": 255}, "input_range 255: allowed is numbers, low and high"),
        (Net(), {"mean": 0.5}, "std None: allowed is numbers per channel"),
        (Net(), {"mean": [0.5], "std": 1.0}, "mean .0.5.: allowed is numbers, one for each of 3 channels"),
        (Net(), {"mean": 0.5, "std": [1, 0, 1]}, "std .*: allowed is numbers above 0"),
        (Net(), {"projector": "thee_layer"}, "unknown projector 'thee_layer'; the nearest: three_layer"),
        (Net(), {"norm_banks": "clean"}, "norm_banks 'clean': allowed is a tuple"),
        (Net(), {"norm_banks": ()}, "norm_banks .*: allowed is a tuple"),
        (Net(), {"norm_banks": ("a.b", "adv")}, "norm_banks .*: allowed is a tuple .* without a dot"),
        (
            ReadsNorm(),
            {"norm_banks": ("clean", "adv")},
            "fails with norm banks .*AttributeError.*or give one norm bank",
        ),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_a_line(module, given, message):
    with pytest.raises(UsageError, match=message) as error:
        wrap_encoder(module, **{"shape": SHAPE, **given})
    assert "\n" not in str(error.value)
    assert error.value.parameter


def test_a_module_that_reads_its_norm_layers_has_one_norm_bank():
    assert wrap_encoder(ReadsNorm(), SHAPE).features(torch.rand(2, *SHAPE)).shape == (2, 4)


def test_a_layer_that_runs_twice_is_refused(net):
    twice = nn.Sequential(net.stem[0], *[relu := nn.ReLU(), relu])
    with pytest.raises(UsageError, match="layer '1' runs 2 times in a forward pass"):
        wrap_encoder(twice, SHAPE, features="1")


def test_a_new_encoder_of_a_module_that_keeps_what_it_computes_is_copied(x):
    class Keeping(Net):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    encoder = wrap_encoder(Keeping(), SHAPE, norm_banks=("clean", "adv"))
    copy.deepcopy(encoder)
    encoder(x, "adv").sum().backward()
    assert encoder.unwrap("adv").state_dict().keys() == Net().state_dict().keys()


def exported(net):
    return torch.export.export(net.eval(), (torch.rand(2, *SHAPE),)).module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("compiled", [torch.jit.script, exported])
def test_compiled_programs_are_refused(compiled, inside, net):
    program = compiled(net)
    with pytest.raises(UsageError, match="is a compiled program .*pass the Python module"):
        wrap_encoder(nn.Sequential(program) if inside else program, SHAPE)


def test_a_module_that_cannot_be_copied_is_refused(net):
    net.kept = (w for w in net.parameters())
    with pytest.raises(UsageError, match="module Net cannot be copied: TypeError: cannot pickle 'generator' object"):
        wrap_encoder(net, SHAPE)
