import pytest
import torch
import torchattacks
from torch import nn

from acl_plugin.backbones import Classifier, Encoder, ModelSpec, Preprocess, backbone_names, create_backbone
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack, ThreatModel
from acl_plugin.objective import Views
from acl_plugin.recipes.acl import DualStream
from acl_plugin.routed_norm import export, routes_of
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
    "mixer_s16_224": ({}, 0),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1), "embed_dim": 12}, 0),
}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_each_family_is_pretrained_probed_and_attacked(backbone):
    kwargs, banks = FAMILIES[backbone]
    torch.manual_seed(0)
    encoder = Encoder(spec((3, 32, 32), backbone, kwargs), ("clean", "adv"))
    assert len(routes_of(encoder.backbone)) == banks
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


def test_cifar_stem_keeps_the_resolution():
    small, native = (create_backbone(spec((3, 32, 32), "resnet18", {}, stem=s))[0] for s in ("cifar", "native"))
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert small.conv1.padding == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert native.conv1.stride == (2, 2)
    assert isinstance(native.maxpool, nn.MaxPool2d)


def test_no_norm_layer_starts_at_zero():
    network, _ = create_backbone(spec((3, 32, 32), "resnet18", {}))
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_fixed_patch_gets_larger_images_and_a_free_one_smaller_patches():
    _, size = create_backbone(spec((3, 32, 32), "mixer_s16_224", FAMILIES["mixer_s16_224"][0]))
    assert size == (128, 128)
    vit, size = create_backbone(spec((3, 32, 32), "vit_tiny_patch16_224", FAMILIES["vit_tiny_patch16_224"][0]))
    assert size == (32, 32)
    assert vit.patch_embed.patch_size == (4, 4)
    kwargs = {"img_size": 48, "depth": 1, "embed_dim": 12}
    assert create_backbone(spec((3, 32, 32), "vit_tiny_patch16_224", kwargs))[1] == (48, 48)


def test_preprocess_normalises_after_resizing():
    x = torch.rand(2, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = Preprocess(mean, std, (8, 8))(x)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean[c]) / std[c])
    assert Preprocess(mean, std, (16, 16))(x).shape == (2, 3, 16, 16)


def test_spec_round_trip_rebuilds_the_model():
    one = spec(classes="ab")
    other = ModelSpec.from_dict(one.to_dict())
    assert other == one
    assert Classifier(other).state_dict().keys() == Classifier(one).state_dict().keys()


def test_unknown_names_and_arguments_are_told():
    with pytest.raises(UsageError, match="unknown backbone 'resnt18'; the nearest: resnet18"):
        create_backbone(spec(backbone="resnt18"))
    with pytest.raises(UsageError, match="unexpected keyword argument 'wings'"):
        create_backbone(spec(kwargs={"wings": 2}))
    with pytest.raises(UsageError, match="does not take 1 x 8 x 8 images"):
        create_backbone(spec(backbone="inception_v3", kwargs={}))


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
