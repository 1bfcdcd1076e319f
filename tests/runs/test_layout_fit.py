"""Files of libraries and of networks beyond ResNet-18, made of random weights, against plain networks; and refusals."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from test_published import IMAGENET, NONE, SMALL, config, made, network, normalization_buffers, prefixed, saved
from torch import nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, ResNet

from acl_plugin import load_encoder
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.wide_resnet import WideResNet
from acl_plugin.objectives.branches import Teacher
from acl_plugin.registry import create_objective
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.layouts import LAYOUTS, PROFEAT_RESNET, PROFEAT_WIDE
from acl_plugin.runs.published import import_run, read
from reference import with_statistics

pytestmark = pytest.mark.e2e

THIN = {"layers": [1, 1, 1, 1]}
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
__all__ = ["config"]


def torchvisions(padding=1, classes=10):
    """torchvision's ResNet with one block per layer; with a stem for small images unless ``padding`` is None."""
    torch.manual_seed(0)
    plain = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    if padding is not None:
        plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    return with_statistics(plain)


def headless(plain):
    plain.fc = nn.Identity()
    return plain


def function(plain, normalization):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in normalization)
    with torch.no_grad():
        return plain((X - mean) / std)


def wide(norms=("",)):
    """A small WideResNet and its weights with a bank of norms for each name; the function is of the first."""
    torch.manual_seed(0)
    plain = with_statistics(WideResNet(10, 1, num_classes=10))
    state = plain.state_dict()
    state["fc.weight"].copy_(torch.eye(64)[:10])  # ten features, without bias
    state["fc.bias"].zero_()
    if len(norms) == 1:
        return plain, {k: v for k, v in state.items() if not k.startswith("fc.")}
    banked = {}
    for key, value in state.items():
        layer, leaf = key.rsplit(".", 1)
        if layer.split(".")[-1].startswith("bn"):
            banked |= {f"{layer}.bn_list.{n}.{leaf}": value + n for n in range(len(norms))}
        elif not layer.startswith("fc"):
            banked[key] = value
    return plain, banked


def mlp(*sizes, norm=False):
    layers = []
    for n, (a, b) in enumerate(pairwise(sizes)):
        layers += ([nn.BatchNorm1d(a)] if norm and n else []) + ([nn.ReLU()] if n else []) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


def encoder_of(path, tmp_path, config, **options):
    run = RunDir(tmp_path / "run")
    import_run(path, run, config.replace(backbone_kwargs=options.pop("kwargs", THIN)), **options)
    return load_encoder(run.path), run


def test_the_wide_resnet_of_rcs_has_its_bank_for_adversarial_images_first(tmp_path, config):
    plain, state = wide(("pgd", "normal"))
    torch.manual_seed(1)
    norms = [[nn.BatchNorm1d(64).eval() for _ in range(2)] for _ in range(2)]
    norms[1][0].running_mean.fill_(0.3)
    fc1, fc2 = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
    head = prefixed("linear.fc1.", fc1.state_dict()) | prefixed("linear.fc2.", fc2.state_dict())
    for layer in (1, 2):
        for bank in (0, 1):
            head |= prefixed(f"linear.bn{layer}.bn_list.{bank}.", norms[layer - 1][bank].state_dict())
    content = {"epoch": 200, "state_dict": state | head, "optim": {}}
    encoder, run = encoder_of(saved(tmp_path, content), tmp_path, config)
    spec = encoder.spec
    assert (spec.backbone, spec.kwargs, spec.mean, spec.std) == ("wrn28_10", {"depth": 10, "width": 1}, *NONE)
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(X)[:, :10], function(plain, NONE), atol=1e-5, rtol=1e-4)
        f = encoder.features(X)
        expected = norms[1][0](fc2(F.relu(norms[0][0](fc1(f)))))
        torch.testing.assert_close(encoder.project(f), expected, atol=1e-5, rtol=1e-4)
        benign = load_encoder(run.path, benign=True)
        first = benign.backbone.block1.layer[0].bn1
        assert torch.equal(first.running_mean, state["block1.layer.0.bn1.bn_list.1.running_mean"])
    assert run.read_config().encoder.backbone == "wrn28_10"
    assert run.read_config().encoder.backbone_kwargs == {"depth": 10, "width": 1}


@pytest.mark.parametrize("stored", [True, False])
def test_a_wide_resnet_of_trades(stored, tmp_path):
    plain, state = wide()
    extra = {
        "sub_block1.layer.0.bn1.weight": torch.ones(16),
        "fc.weight": torch.ones(10, 64),
        "fc.bias": torch.ones(10),
    }
    buffers = normalization_buffers(IMAGENET) if stored else {}
    path = saved(tmp_path, {"state_dict": prefixed("module.", state | extra | buffers)})
    if not stored:
        with pytest.raises(UsageError, match="does not store how its images are normalized"):
            read(path)
    found = read(path, normalization="imagenet")
    assert (found.layout, found.left_out, found.head.name) == ("wide", ("sub_block1",), "fc")
    backbone = Encoder(found.spec).backbone.eval()
    backbone.load_state_dict(found.banks["shared"])
    with torch.no_grad():
        features = function(backbone, (found.spec.mean, found.spec.std))
    torch.testing.assert_close(features[:, :10], function(plain, IMAGENET), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("net", ["resnet", "wide"])
def test_profeats_networks_normalize_by_their_kind_unless_they_store_it(net, stored, tmp_path, config):
    plain, size = (headless(torchvisions(padding=2)), 512) if net == "resnet" else (wide()[0], 64)
    state = plain.state_dict() if net == "resnet" else wide()[1]
    g = mlp(size, 640, 256)
    weights = prefixed("backbone.", state | (normalization_buffers(IMAGENET) if stored else {}))
    weights |= prefixed("projector.", g.state_dict()) | prefixed("classifier.", nn.Linear(size, 10).state_dict())
    content = {"model": prefixed("module.", weights), "optim": {"state": {}}, "epoch": 100, "rng_state": torch.ones(2)}
    encoder, run = encoder_of(saved(tmp_path, content), tmp_path, config)
    expected = IMAGENET if stored else PROFEAT_RESNET if net == "resnet" else PROFEAT_WIDE
    features = encoder.features(X).detach()
    wanted = function(plain, expected)
    torch.testing.assert_close(features[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.project(features), g(features), atol=1e-5, rtol=1e-4)
    assert (encoder.projector_name, encoder.spec.stem) == (
        "mlp_640_256",
        "cifar_padding_2" if net == "resnet" else "cifar",
    )
    assert run.read_config().objective.objective_kwargs["methods"] == ["profeat"]


def test_a_fine_tuned_classifier_of_profeat(tmp_path):
    plain = torchvisions(padding=2)
    head = {f"fc.{leaf}": getattr(plain.fc, leaf) for leaf in ("weight", "bias")}
    body = prefixed("backbone.", headless(plain).state_dict() | normalization_buffers(PROFEAT_RESNET))
    found = read(saved(tmp_path, {"epoch": 25, "state_dict": body | head}), backbone_kwargs=THIN)
    assert (found.layout, found.head.name, found.spec.stem) == ("profeat_classifier", "fc", "cifar_padding_2")
    assert found.left_out == ()


SOLO = {
    "simclr": ({"projector": mlp(512, 2048, 128)}, "wide"),
    "simclr, other sizes": ({"projector": mlp(512, 96, 32)}, "mlp_96_32"),
    "byol": (
        {
            "projector": mlp(512, 32, 16, norm=True), "momentum_projector": mlp(512, 32, 16, norm=True),
            "predictor": mlp(16, 32, 16, norm=True), "momentum_classifier": nn.Linear(512, 10),
        },
        None,
    ),
    "mocov2plus": ({"projector": mlp(512, 512, 128), "momentum_projector": mlp(512, 512, 128)}, "two_layer"),
    "barlow_twins": ({"projector": mlp(512, 32, 32, 16, norm=True)}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ["backbone", "encoder"])
@pytest.mark.parametrize("method", SOLO)
def test_methods_of_solo_learn_are_encoders_and_teachers(method, name, tmp_path, config):
    plain, (parts, kind) = headless(torchvisions(padding=2)), SOLO[method]
    weights = prefixed(f"{name}.", plain.state_dict()) | prefixed("classifier.", nn.Linear(512, 10).state_dict())
    for part, module in parts.items():
        weights |= prefixed(f"{part}.", module.state_dict())
    if "momentum_projector" in parts:
        weights |= prefixed(f"momentum_{name}.", headless(torchvisions(padding=2)).state_dict())
        weights |= {"queue": torch.rand(2, 16, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    content = {"epoch": 999, "state_dict": weights, "hyper_parameters": {"lr": 0.3}, "callbacks": {}}
    path = saved(tmp_path, content)
    with pytest.raises(UsageError, match="does not store how its images are normalized"):
        read(path, backbone_kwargs=THIN)
    found = read(path, backbone_kwargs=THIN, normalization="cifar")
    assert found.layout == "solo"
    assert ("projector" in found.left_out) == (kind is None)
    assert {p for p in parts if p != "projector"} <= set(found.left_out)
    encoder, _ = encoder_of(path, tmp_path, config, normalization="cifar")
    torch.testing.assert_close(encoder.features(X).detach(), function(plain, LAYOUTS_CIFAR), atol=1e-5, rtol=1e-4)
    assert encoder.projector_name == (kind or "identity")
    student = Encoder(encoder.spec, ("shared",), "identity")
    objective = create_objective("deacl", teacher=encoder)
    objective.setup(student)
    torch.testing.assert_close(objective.teacher(X), student.eval().features(X).detach())
    assert isinstance(objective.teacher, Teacher)


LAYOUTS_CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))


@pytest.mark.parametrize("form", ["children", "named"])
def test_lightlys_backbones_are_resnets_of_torchvision(form, tmp_path):
    plain = headless(torchvisions(padding=None))
    backbone = nn.Sequential(*list(plain.children())[:-1]) if form == "children" else plain
    head = {
        "layers.0.weight": torch.ones(16, 512),
        "layers.1.weight": torch.ones(16),
        "layers.3.weight": torch.ones(8, 16),
    }
    weights = prefixed("backbone.", backbone.state_dict()) | prefixed("projection_head.", head)
    weights |= prefixed("prediction_head.", head) | prefixed("backbone_momentum.", plain.state_dict())
    found = read(saved(tmp_path, weights), backbone_kwargs=THIN, normalization="imagenet", shape=(3, 64, 64))
    assert (found.layout, found.spec.stem) == ("lightly", "native")
    assert found.left_out == ("backbone_momentum", "prediction_head", "projection_head")
    assert {k: v.shape for k, v in found.banks["shared"].items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert all(torch.equal(found.banks["shared"][k], v) for k, v in plain.state_dict().items())


def test_dinos_teacher_and_its_backbone_file(tmp_path):
    plain = headless(torchvisions(padding=None))
    head = {"mlp.0.weight": torch.ones(16, 512), "last_layer.weight_g": torch.ones(8, 1)}
    body = prefixed("module.backbone.", plain.state_dict()) | prefixed("module.head.", head)
    content = {"student": {k: torch.zeros_like(v) for k, v in body.items()}, "teacher": body, "epoch": 3}
    found = read(saved(tmp_path, content), backbone_kwargs=THIN, shape=(3, 64, 64))
    assert (found.layout, found.spec.mean, found.spec.stem) == ("dino", IMAGENET[0], "native")
    assert found.left_out == ("head", "student")
    alone = read(saved(tmp_path, plain.state_dict() | BLOCK), backbone_kwargs=TWO, normalization="imagenet")
    assert alone.layout == "plain"
    assert all(torch.equal(found.banks["shared"][k], v) for k, v in plain.state_dict().items())


TWO = {"layers": [1, 1, 1, 2]}
with torch.random.fork_rng(devices=[]):
    BLOCK = prefixed("layer4.1.", BasicBlock(512, 512).state_dict())
"""A second block, by which a plain ResNet is recognized."""


def test_a_vision_transformer_of_dino(tmp_path, config):
    import timm

    small = {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    plain = timm.create_model("vit_small_patch16_224", num_classes=0, **small).eval()
    weights = prefixed("backbone.", plain.state_dict()) | {"head.mlp.0.weight": torch.ones(4, 24)}
    path = saved(tmp_path, {"student": {}, "teacher": weights})
    encoder, _ = encoder_of(path, tmp_path, config.replace(backbone="vit_small_patch16_224"), kwargs=small)
    torch.testing.assert_close(encoder.features(X).detach(), function(plain, IMAGENET), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("named", [True, False])
def test_acls_simclr_has_one_bank_and_may_have_a_projector_of_two_layers(named, tmp_path, config):
    content, banks, projector = made("banks")
    state = {k.removeprefix("module."): v for k, v in content["state_dict"].items()}
    state = {k: v for k, v in state.items() if ".bn_list.1." not in k and ".fc3." not in k and "fc.bn3" not in k}
    if not named:
        state = {k.replace(".bn_list.0.", ".bn_list."): v for k, v in state.items()}
    encoder, run = encoder_of(saved(tmp_path, {"state_dict": state}), tmp_path, config, kwargs=SMALL)
    assert run.read_config().objective.objective_kwargs["format"] == "one_bank"
    assert encoder.projector_name == "two_layer_norm"
    g = projector[:5]  # the second bank differs from the first in its norms
    assert torch.equal(encoder.projector[0].weight, g[0].weight)
    assert all(torch.equal(encoder.backbone.state_dict()[k], v) for k, v in banks["normal"].items())


def test_two_banks_may_have_a_projector_of_two_layers(tmp_path, config):
    content, _, projector = made("banks")
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if ".fc3." not in k and "fc.bn3" not in k}
    encoder, _ = encoder_of(saved(tmp_path, content), tmp_path, config, kwargs=SMALL)
    f = encoder.features(X).detach()
    torch.testing.assert_close(encoder.project(f), projector[:5](f), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("epoch", ["", "_epoch_200"])
def test_rocls_projector_is_found_beside_its_network(epoch, tmp_path, config):
    torch.manual_seed(2)
    first, second = nn.Linear(16, 64), nn.Linear(64, 128)
    names = prefixed("linear_1.", first.state_dict()) | prefixed("linear_2.", second.state_dict())
    path = tmp_path / f"ckpt.t7contrastive_0{epoch}"
    torch.save(made("shortcut")[0], path)
    beside = tmp_path / f"ckpt.t7contrastive_0_projector{epoch}"
    torch.save({"model": prefixed("module.", names), "epoch": 3}, beside)
    encoder, _ = encoder_of(path, tmp_path, config, kwargs=SMALL)
    f = encoder.features(X).detach()
    torch.testing.assert_close(encoder(X), second(F.relu(first(f))), atol=1e-5, rtol=1e-4)
    assert encoder.projector_name == "wide"
    with pytest.raises(UsageError, match="is the projector that RoCL's code writes beside a network"):
        read(beside)


@pytest.mark.parametrize(("keys", "reason"), [
    (["backbone.block1.layer.0.conv1.weight", "backbone.conv1.bias"], "is solo-learn's WideResNet, which has"),
    (["backbone.0.weight", "backbone.2.0.conv1.weight"], "without a ReLU after the first norm layer"),
])  # fmt: skip
def test_a_network_that_no_backbone_is_is_refused_with_the_reason(keys, reason, tmp_path):
    with pytest.raises(UsageError, match=reason) as error:
        read(saved(tmp_path, {key: torch.zeros(2) for key in keys}))
    assert "\n" not in str(error.value)


def test_what_fits_no_layout_is_refused_with_how_near_each_is(tmp_path):
    plain = resnet.resnet50().state_dict()
    path = saved(tmp_path, {"state_dict": plain})
    with pytest.raises(UsageError, match="missing: layer1.0.downsample|of another shape") as error:
        read(path, normalization="imagenet")
    text = str(error.value)
    assert "\n" not in text
    assert "unexpected: layer1.0.conv3.weight and" in text
    assert "its blocks are those of resnet50: give `backbone` resnet50" in text
    assert "tried plain 78 of 100, " in text
    assert "no weight of wide_banks, wide, student, solo, lightly;" in text
    weights = {k: v for k, v in network(0).items() if k != "layer2.0.conv1.weight"} | {"layer9.weight": torch.zeros(2)}
    with pytest.raises(UsageError) as error:
        read(saved(tmp_path, weights), backbone_kwargs=SMALL, normalization="none")
    assert "missing: layer2.0.conv1.weight; unexpected: layer9.weight; tried plain 104 of 105" in str(error.value)
    assert all(name in str(error.value) for name in LAYOUTS)
