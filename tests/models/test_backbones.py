from dataclasses import replace

import pytest
import timm
import torch
import torchattacks
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError
from acl_plugin.models.backbones import create_backbone, sees_every_pixel
from acl_plugin.models.encoder import Classifier, Encoder, Preprocess
from acl_plugin.models.norm_banks import export, names_of
from acl_plugin.models.spec import ModelSpec
from acl_plugin.models.timm_names import backbone_names
from acl_plugin.objectives.acl import DualStream
from acl_plugin.objectives.base import Views
from conftest import spec

FAMILIES = {  # name: (small arguments, norm banks)
    "resnet18": ({"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 2),
    "resnet50": ({"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 2),
    "wide_resnet50_2": ({"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 2),
    "resnetv2_50": ({"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 2),
    "convnext_tiny": ({"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}, 0),
    "vit_tiny_patch16_224": ({"depth": 1, "embed_dim": 12}, 0),
    "efficientnet_b0": ({}, 2),
    "mobilenetv3_small_100": ({}, 2),
    "densenet121": ({"growth_rate": 4, "block_config": (1, 1, 1, 1)}, 2),
    "regnety_002": ({}, 2),
    "wrn28_10": ({"depth": 10, "width": 1}, 2),
    "mixer_s16_224": ({"mlp_ratio": [0.5, 0.125]}, 0),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1), "embed_dim": 12}, 0),
}


@pytest.mark.e2e
@pytest.mark.parametrize("backbone", FAMILIES)
def test_each_family_is_pretrained_probed_and_attacked(backbone):
    kwargs, banks = FAMILIES[backbone]
    torch.manual_seed(0)
    encoder = Encoder(spec((3, 32, 32), backbone, kwargs), ("clean", "adv"))
    assert len(names_of(encoder.backbone)) == banks
    a, b = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    attack = InnerAttack(ThreatModel("Linf", 8 / 255), "PGD", 1)
    objective = DualStream()
    objective.setup(encoder)
    before = [p.detach().clone() for p in encoder.parameters()]
    optimizer = torch.optim.SGD(objective.param_groups(encoder), lr=0.1)
    terms = objective.backward(encoder, Views(a, b, a, torch.arange(4)), attack)
    optimizer.step()
    assert terms.total.isfinite()
    assert any(not torch.equal(p, q) for p, q in zip(encoder.parameters(), before, strict=True))

    model = Classifier(spec((3, 32, 32), backbone, kwargs, classes=("cat", "dog", "fox")))
    model.backbone.load_state_dict(export(encoder.backbone, "adv").state_dict())
    encoder.eval(), model.eval()
    torch.testing.assert_close(model.features(a), encoder.features(a, "adv"), atol=1e-5, rtol=1e-4)
    assert model(a).shape == (4, 3)
    moved = torchattacks.PGD(model, eps=8 / 255, steps=2)(a, torch.arange(4) % 3)
    assert 0 < (moved - a).abs().max() <= 8 / 255 + 1e-6


def test_a_classifier_is_not_taken_for_features():
    with pytest.raises(UsageError, match="`backbone_kwargs.num_classes` is not taken") as error:
        Encoder(replace(spec(), kwargs={**spec().kwargs, "num_classes": 10}))
    assert error.value.parameter == "backbone_kwargs"
    Encoder(replace(spec(), kwargs={**spec().kwargs, "num_classes": 0}))


@pytest.mark.e2e
def test_cifar_stem_keeps_the_resolution():
    small, native = (create_backbone(spec((3, 32, 32), "resnet18", {}, stem=s))[0] for s in ("cifar", "native"))
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert small.conv1.padding == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert native.conv1.stride == (2, 2)
    assert isinstance(native.maxpool, nn.MaxPool2d)


@pytest.mark.e2e
@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("cifar_padding_2", 34), ("cifar_stride_2", 16)])
@pytest.mark.parametrize("kwargs", [{}, {"stem_type": "deep", "stem_width": 8}])
def test_the_stem_decides_the_resolution_of_the_first_stage(stem, side, kwargs):
    network, _ = create_backbone(spec((3, 32, 32), "resnet18", {"channels": [8, 8, 8, 8], **kwargs}, stem=stem))
    sides = []
    network.layer1.register_forward_pre_hook(lambda _, x: sides.append(x[0].shape[-1]))
    network.eval()(torch.zeros(1, 3, 32, 32))
    assert sides == [side]


@pytest.mark.e2e
@pytest.mark.parametrize(("stem", "patches"), [("cifar", 64), ("cifar_stride_2", 16)])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "mixer_s16_224"])
def test_the_stem_decides_the_number_of_patches(backbone, stem, patches):
    network, size = create_backbone(spec((3, 32, 32), backbone, FAMILIES[backbone][0], stem=stem))
    counted = []
    network.blocks[0].register_forward_pre_hook(lambda _, x: counted.append(x[0].shape[1]))
    network.eval()(torch.zeros(1, 3, *size))
    assert counted[0] in (patches, patches + 1)  # with a class token


def test_no_norm_layer_starts_at_zero():
    network, _ = create_backbone(spec((3, 32, 32), "resnet18", {}))
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.e2e
def test_a_fixed_patch_gets_larger_images_and_a_free_one_smaller_patches():
    _, size = create_backbone(spec((3, 32, 32), "mixer_s16_224", FAMILIES["mixer_s16_224"][0]))
    assert size == (128, 128)
    vit, size = create_backbone(spec((3, 32, 32), "vit_tiny_patch16_224", FAMILIES["vit_tiny_patch16_224"][0]))
    assert size == (32, 32)
    assert vit.patch_embed.patch_size == (4, 4)
    kwargs = {"img_size": 48, "depth": 1, "embed_dim": 12}
    assert create_backbone(spec((3, 32, 32), "vit_tiny_patch16_224", kwargs))[1] == (48, 48)


def test_preprocess_normalizes_after_resizing():
    x = torch.rand(2, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = Preprocess(mean, std, (8, 8))(x)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean[c]) / std[c])
    assert Preprocess(mean, std, (16, 16))(x).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
def test_images_of_integers_are_refused(kind):
    """8-bit images, as they are read from files, would give other features."""
    classifier = Classifier(spec(classes=tuple("abc")))
    with pytest.raises(UsageError, match="divide 8-bit images by 255") as error:
        classifier(torch.zeros(2, *classifier.spec.shape, dtype=kind))
    assert error.value.parameter == "images"


def test_spec_round_trip_rebuilds_the_model():
    one = spec(classes="ab")
    other = ModelSpec.from_dict(one.to_dict())
    assert other == one
    assert Classifier(other).state_dict().keys() == Classifier(one).state_dict().keys()


@pytest.mark.parametrize(("backbone", "found"), [
    ("resnt18", "the nearest: resnet18"),
    ("resnet18.nope", "names pretrained weights: give `pretrained` to start from them, or 'resnet18'"),
    ("resnet18.", "names pretrained weights"),
    ("resnet18.a1_in1k", "or 'resnet18' for random weights"),
    ("hf-hub:timm/resnet18.a1_in1k", "acl-plugin import"),
    ("local-dir:/models/resnet18", "acl-plugin import"),
])  # fmt: skip
def test_a_name_that_is_not_timms_is_refused(backbone, found):
    with pytest.raises(UsageError, match=found) as error:
        create_backbone(spec(backbone=backbone))
    assert (error.value.parameter, error.value.given) == ("backbone", backbone)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kwargs", [{"wings": 2}, {"pretrained": True}, {"checkpoint_path": "x.pth"}])
def test_arguments_are_refused(kwargs):
    with pytest.raises(UsageError, match=next(iter(kwargs))) as error:
        create_backbone(spec(kwargs=kwargs))
    assert (error.value.parameter, error.value.given) == ("backbone_kwargs", kwargs)


@pytest.mark.e2e
@pytest.mark.parametrize(("backbone", "side", "parameter", "allowed"), [
    ("visformer_tiny", 32, "stem", ("native",)),
    ("repvgg_a0", 32, "stem", ("native",)),
    ("volo_d1_224", 96, "stem", ("native",)),
    ("pit_ti_224", 9, "stem", ("native",)),  # its patches would skip pixels inside of the image
    ("halonet_h1", 32, "image_size", (64, 64)),
])  # fmt: skip
def test_a_refusal_states_what_was_tried_and_works(backbone, side, parameter, allowed):
    refused = spec((3, side, side), backbone, {})
    with pytest.raises(UsageError, match=r"\w+Error: \S.*; it takes ") as error:
        create_backbone(refused)
    assert (error.value.parameter, error.value.allowed) == (parameter, allowed)
    stem, shape = ("native", refused.shape) if parameter == "stem" else (refused.stem, (3, *allowed))
    create_backbone(replace(refused, stem=stem, shape=shape))


def test_running_out_of_memory_is_no_refusal(monkeypatch):
    def exhausted(*arguments, **kwargs):
        raise MemoryError

    monkeypatch.setattr("timm.create_model", exhausted)
    with pytest.raises(MemoryError):
        create_backbone(spec())


def own_network(pretrained=False, in_chans=1, **kwargs):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def registered():
    """A network of this module under a name of its own; taken back afterwards."""
    from timm.models import _registry, register_model

    register_model(own_network)
    yield "own_network"
    for table in (_registry._model_entrypoints, _registry._model_to_module):
        table.pop("own_network", None)


def test_an_own_network_is_named_with_its_module_where_it_is_unknown(registered):
    model = Classifier(spec(backbone=registered, kwargs={}, classes="ab"))
    written = model.spec.to_dict()
    assert written["module"] == __name__
    assert Classifier(ModelSpec.from_dict(written)).head.in_features == 4
    elsewhere = ModelSpec.from_dict({**written, "backbone": "no_such_network", "module": "my_networks"})
    with pytest.raises(UsageError, match="my_networks") as error:
        create_backbone(elsewhere)
    assert error.value.parameter == "backbone"


@pytest.mark.parametrize("module", ["my_networks", "__main__"])
def test_timms_network_is_not_taken_for_an_own_one_of_the_same_name(module):
    with pytest.raises(UsageError, match=r"timm\.models\.resnet") as error:
        create_backbone(replace(spec(), module=module))
    assert error.value.parameter == "backbone"


def test_an_unknown_field_of_a_spec_is_not_ignored():
    with pytest.raises(TypeError, match="wheels"):
        ModelSpec.from_dict(spec().to_dict() | {"wheels": 4})


SIZES = [(8, 8), (17, 17), (32, 32), (28, 50), (100, 100)]
SEEN = {  # of one kind of stem or of downsampling each
    ("vit_tiny_patch16_224", "cifar"): {"depth": 1, "embed_dim": 12},
    ("vit_tiny_patch16_224", "native"): {"depth": 1, "embed_dim": 12},
    ("convnext_tiny", "cifar"): {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
    ("convnext_tiny", "native"): {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
    ("swin_tiny_patch4_window7_224", "cifar"): {"depths": (1, 1, 1, 1), "embed_dim": 12},
    ("mixer_s16_224", "cifar"): {},
    ("convmixer_768_32", "cifar"): {},
    ("resnet18", "cifar"): {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    ("resnet18", "native"): {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    ("resnet18", "cifar_stride_2"): {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    ("mobilenetv3_small_050", "native"): {},
}


def unseen(model, shape):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.features(x).square().sum(), x)
    strength = gradient.abs().sum((0, 1))
    assert strength.isfinite().all()
    return int((strength.sum(0) == 0).sum() + (strength.sum(1) == 0).sum())


@pytest.mark.e2e
@pytest.mark.parametrize(("backbone", "stem"), SEEN)
def test_every_pixel_has_an_influence(backbone, stem):
    for height, width in SIZES if "mix" not in backbone else SIZES[2:3]:
        torch.manual_seed(0)
        shape = (3, height, width)
        model = Encoder(spec(shape, backbone, SEEN[backbone, stem], stem=stem)).eval()
        assert unseen(model, shape) == 0, shape


def test_a_network_whose_features_are_not_finite_is_refused(monkeypatch):
    """SwinV2 of timm 1.0.9 divides by the size of its last window, in patches, less one."""
    swin = timm.models.SwinTransformerV2
    forward = swin.forward_features

    def divided(self, x):
        return forward(self, x) * (float("nan") if 1 in self.layers[-1].blocks[-1].window_size else 1)

    monkeypatch.setattr(swin, "forward_features", divided)
    kwargs = {"depths": (1, 1, 1, 1), "embed_dim": 12}
    with pytest.raises(UsageError, match="not finite; it takes 32 x 32 with `stem` 'native'"):
        create_backbone(spec((3, 32, 32), "swinv2_tiny_window8_256", kwargs))


@pytest.mark.parametrize(("side", "patch", "size"), [(8, 1, 8), (12, 1, 12), (28, 4, 32), (32, 4, 32), (50, 7, 56),
                                                     (64, 8, 64), (96, 12, 96), (224, 28, 224)])  # fmt: skip
def test_sizes_that_fit_stay_and_others_become_eight_patches(side, patch, size):
    vit, taken = create_backbone(spec((3, side, side), "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}))
    assert (vit.patch_embed.patch_size, taken) == ((patch, patch), (size, size))


def test_a_run_of_before_keeps_its_network():
    written = spec((3, 28, 28), "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}).to_dict()
    del written["every_pixel"], written["module"]
    vit, taken = create_backbone(ModelSpec.from_dict(written))
    assert (vit.patch_embed.patch_size, taken) == ((3, 3), (28, 28))


def test_an_image_size_that_the_patches_do_not_fill_is_refused():
    with pytest.raises(UsageError, match="no influence"):
        create_backbone(spec((3, 32, 32), "vit_tiny_patch16_224", {"img_size": 50, "depth": 1, "embed_dim": 12}))


def test_images_that_shrink_to_less_than_half_keep_all_pixels():
    torch.manual_seed(0)
    shape = (3, 100, 130)
    model = Encoder(spec(shape, "vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 12})).eval()
    assert model.preprocess.antialias
    assert unseen(model, shape) == 0


def test_whether_pixels_are_seen_does_not_depend_on_the_weights():
    network = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for p in network.parameters():
        nn.init.zeros_(p)
    assert sees_every_pixel(network, 1, (6, 6))
    assert not sees_every_pixel(network, 1, (7, 6))
    assert not sees_every_pixel(network, 1, (6, 7))


def test_a_network_is_built_where_no_gradient_is_taken():
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert Classifier(spec(classes="ab")).head.in_features == 8


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("backbone", "stem", "last"),
    [("lambda_resnet26t", "cifar", False), ("repvgg_a0", "native", False), ("resnet10t", "cifar", True)],
)
def test_weights_are_ordered_by_channels_where_torch_can(backbone, stem, last):
    model = Encoder(spec((3, 32, 32), backbone, {}, stem=stem))
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size > (1, 1)]
    ordered = [w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.shape[1] > 1]
    assert all(ordered) if last else not any(ordered)


def test_names_by_wildcard():
    assert "resnet18" in backbone_names("resnet1*")
    assert not backbone_names("no_such_*")


def test_the_head_of_a_classifier_is_in_float32_under_autocast():
    torch.manual_seed(0)
    model = Classifier(spec(classes="0123456789")).eval()
    x = torch.rand(4, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.features(x).dtype == torch.bfloat16
        logits = model(x)
        assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(x), rtol=0.1, atol=0.05)
    assert model.double()(x.double()).dtype == torch.float64
