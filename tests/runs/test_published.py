"""Each published layout is made from a random ResNet-18 and read back; functions are compared, not keys."""

import argparse
import dataclasses
import os
import pickle
import zipfile

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from run_files import contents
from torch import nn

from acl_plugin import load_classifier, load_encoder
from acl_plugin.config import preset
from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import UsageError
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.spec import ModelSpec
from acl_plugin.runs import layouts
from acl_plugin.runs.checkpoint_file import CONTAINERS
from acl_plugin.runs.discriminator import logits, read_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.imported_head import Head, accuracies, judge
from acl_plugin.runs.layouts import CIFAR, IMAGENET, LAYOUTS, NONE
from acl_plugin.runs.models import read_projector, weights_hash
from acl_plugin.runs.published import datasets, import_run, read
from acl_plugin.runtime.files import read_json, write_json

SMALL = {"channels": [8, 8, 16, 16]}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def network(seed, backbone="resnet18", stem="cifar"):
    """Plain weights of a small ResNet with statistics that are not trivial."""
    torch.manual_seed(seed)
    spec = ModelSpec(backbone, SMALL, stem, (3, 32, 32), (0,) * 3, (1,) * 3)
    state = create_backbone(spec)[0].state_dict()
    for key, value in state.items():
        if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            state[key] = torch.rand_like(value) + 0.5
        elif key.endswith(("running_mean", "bias")):
            state[key] = torch.randn_like(value) / 5
    return state


def banked(states):
    """The published names of several banks that share their convolutions."""
    merged = {}
    for number, state in enumerate(states):
        for key, value in state.items():
            key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
            layer, leaf = key.rsplit(".", 1)
            if layer.split(".")[-1].startswith("bn"):
                merged[f"{layer}.bn_list.{number}.{leaf}"] = value
            else:
                merged[key] = value
    return merged


def two_norms(states, shortcut=3):
    """The names of GSA-RSL's code, where norms are lists and a shortcut is one more layer of its block."""
    merged = {}
    for number, state in enumerate(states):
        for key, value in state.items():
            key = key.replace("downsample.0.", f"conv{shortcut}.").replace("downsample.1.", f"bn{shortcut}.")
            layer, leaf = key.rsplit(".", 1)
            own = f"{layer}.{number}.{leaf}" if layer.split(".")[-1].startswith("bn") else key
            merged[f"encoder.{own}"] = value
    return merged


def bank_of(first, other):
    """The convolutions of ``first`` and the norms of ``other``."""
    return {k: other[k] if "bn" in k or "downsample.1" in k else v for k, v in first.items()}


def forward(state, x, normalization, padding=1, identity=True):
    """ResNet-18 in eval mode, written out: (B, 3, H, W) in [0, 1] -> (B, D); GSA-RSL's code has no identities."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)

    def norm(h, name):
        weights = [state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(h, *weights)

    h = F.relu(norm(F.conv2d((x - mean) / std, state["conv1.weight"], padding=padding), "bn1"))
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            out = F.relu(norm(F.conv2d(h, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            out = norm(F.conv2d(out, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                h = norm(F.conv2d(h, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
                h = F.relu(out + h)
            else:
                h = F.relu(out + h) if identity else F.relu(out)
    return h.mean((2, 3))


def three_layer(size, number):
    torch.manual_seed(100 + number)
    layers = [nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size, bias=False),
              nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size, bias=False), nn.BatchNorm1d(size)]  # fmt: skip
    return nn.Sequential(*layers).eval()


def published_projector(projectors):
    """Two banks of ACL's projector under its published names."""
    names = {0: "fc1", 1: "bn1", 3: "fc2", 4: "bn2", 6: "fc3", 7: "bn3"}
    state = {}
    for number, projector in enumerate(projectors):
        for key, value in projector.state_dict().items():
            index, leaf = key.split(".")
            name = names[int(index)]
            state[f"fc.{name}.bn_list.{number}.{leaf}" if name.startswith("bn") else f"fc.{name}.{leaf}"] = value
    return state


def shared_linear(first, other):
    other.load_state_dict({k: v for k, v in first.state_dict().items() if k[0] in "036"}, strict=False)
    return other


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def normalization_buffers(values):
    mean, std = values
    return {"normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}


def made(layout):
    """A checkpoint of ``layout``, its banks (plain weights by name), and its projector if it has one."""
    clean = network(0)
    adv, ce = bank_of(clean, network(1)), bank_of(clean, network(2))
    head = {"fc.weight": torch.randn(10, 16), "fc.bias": torch.randn(10)}
    heads = [three_layer(16, 0), shared_linear(three_layer(16, 0), three_layer(16, 1))]
    projector, two = published_projector(heads), {"normal": clean, "pgd": adv}
    if layout == "banks":
        weights = banked([clean, adv]) | projector | normalization_buffers(((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        return {"epoch": 1000, "state_dict": prefixed("module.", weights), "optim": {}}, two, heads[1]
    if layout == "banks, pseudo-label head":
        return banked([clean, adv]) | head | normalization_buffers(IMAGENET), two, None
    if layout == "momentum":
        other = banked([network(3), network(4)])
        whole = prefixed("encoder_q.", other | projector) | prefixed(
            "encoder_k.", banked([clean, adv]) | projector | normalization_buffers(IMAGENET)
        )
        return whole, two, heads[1]
    if layout == "clustered":
        torch.manual_seed(9)
        g = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 128)).eval()
        extra = {
            "fc_002.weight": torch.randn(2, 16),
            "fc_002.bias": torch.randn(2),
            "fc_500.weight": torch.randn(5, 16),
        }
        extra |= prefixed("head_pred.", {"0.weight": torch.randn(4, 4)}) | {"head_ce.weight": torch.randn(2, 2)}
        weights = banked([clean, adv, ce]) | prefixed("head_proj.", g.state_dict()) | extra
        return {"model": prefixed("module.", weights), "epoch": 3}, {"normal": clean, "pgd": adv, "pgd_ce": ce}, g
    if layout == "two_norms":
        torch.manual_seed(7)
        g, h = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 128)), nn.Linear(128, 1)
        weights = two_norms([clean, adv]) | prefixed("encoder.", normalization_buffers(IMAGENET))
        weights |= prefixed("head.", g.state_dict()) | head
        args = argparse.Namespace(learning_rate=0.5, dataset="cifar10", stra="ours")
        content = {"args": args, "epoch": 500, "model": weights, "discriminator": prefixed("d.0.", h.state_dict())}
        return content | {"optimizer": {"state": {}}, "d_optimizer": None}, two, g
    if layout == "two_norms_bottleneck":
        clean = network(0, "resnet50")
        two = {"normal": clean, "pgd": bank_of(clean, network(1, "resnet50"))}
        weights = two_norms(list(two.values()), shortcut=4) | prefixed("encoder.", normalization_buffers(IMAGENET))
        return {"model": weights}, two, None
    if layout == "adv_suffix":
        weights = {}
        for number, state in enumerate((clean, adv)):
            for key, value in banked([state]).items():
                suffix = "_adv." if number else "."
                weights[key.replace(".bn_list.0.", suffix)] = value
        extra = {"fc.0.weight": torch.randn(3, 3)} | normalization_buffers(IMAGENET)
        return {"state_dict": weights | extra}, two, None
    if layout == "shortcut":
        weights = {k.replace("downsample", "shortcut"): v for k, v in clean.items()}
        return {"model": weights | {"linear.weight": torch.randn(10, 16)}, "acc": 83.7}, {"shared": clean}, None
    if layout == "student":
        teacher = prefixed("momentum_backbone.", network(5))
        extra = {
            f"{name}.weight": torch.randn(10, 16) for name in ("classifier", "classifier_adv", "momentum_classifier")
        }
        stored = prefixed("backbone.", clean | normalization_buffers(CIFAR))
        return {"state_dict": stored | teacher | extra}, {"shared": clean}, None
    assert layout == "plain"
    return {"state_dict": clean | head | normalization_buffers(IMAGENET)}, {"shared": clean}, None


EXPECTED = {
    "two_norms": IMAGENET,
    "banks": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    "banks, pseudo-label head": IMAGENET,
    "momentum": IMAGENET,
    "clustered": NONE,
    "adv_suffix": IMAGENET,
    "shortcut": NONE,
    "student": CIFAR,
    "plain": IMAGENET,
}


def weights_in(content):
    """The weights of a file, wherever they are in it."""
    container = next((name for name in CONTAINERS if name in content), None)
    return content if container is None else content[container]


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def config(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    some = Images(pixels, torch.arange(20) % 10, torch.arange(20), 255)
    source = DataSet("cifar10", some, some, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(datasets, "load", lambda config: source)
    return preset("cifar10", backbone_kwargs=SMALL)


def saved(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


@pytest.mark.e2e
@pytest.mark.parametrize("layout", EXPECTED)
def test_every_layout_gives_the_function_of_the_file(layout, tmp_path, images):
    content, banks, projector = made(layout)
    published = read(saved(tmp_path, content), backbone_kwargs=SMALL)
    assert published.layout == layout.split(",")[0]
    assert (published.projectors is None) == (projector is None)
    assert list(published.banks) == list(banks)
    padding = 2 if layout == "student" else 1
    for name, state in banks.items():
        backbone, _ = create_backbone(published.spec)
        backbone.load_state_dict(published.banks[name])
        backbone.eval()
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (published.spec.mean, published.spec.std))
        with torch.no_grad():
            ours, theirs = (
                backbone((images - mean) / std),
                forward(state, images, EXPECTED[layout], padding, layout != "two_norms"),
            )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


ELSEWHERE = {"one_bank", "wide_banks", "wide", "profeat", "profeat_classifier", "solo", "lightly", "dino"}
"""Layouts of ``test_layout_fit``."""


def test_every_layout_is_tested():
    assert {name.split(",")[0] for name in EXPECTED} | {"two_norms_bottleneck"} | ELSEWHERE == set(LAYOUTS)


@pytest.mark.e2e
def test_bottleneck_blocks_of_gsa_rsl_keep_their_third_convolution(tmp_path):
    content, banks, _ = made("two_norms_bottleneck")
    published = read(saved(tmp_path, content), backbone="resnet50", backbone_kwargs=SMALL)
    assert published.layout == "two_norms_bottleneck"
    for name, state in banks.items():
        assert all(torch.equal(published.banks[name][key], value) for key, value in state.items())


@pytest.mark.e2e
@pytest.mark.parametrize("deep", [False, True])
def test_the_discriminator_of_gsa_rsl_is_kept_for_audits(deep, tmp_path, images, config):
    content, banks, projector = made("two_norms")
    h = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)) if deep else nn.Sequential(nn.Linear(128, 1))
    content["discriminator"] = prefixed("d.", h.state_dict())
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, content), run, config)
    encoder, (layer, found) = load_encoder(run.path), read_discriminator(run)
    assert layer == "projections"
    with torch.no_grad():
        features = F.normalize(forward(banks["pgd"], images, IMAGENET, identity=False), dim=1)
        expected = h(F.normalize(projector(features), dim=1)).squeeze(1)
    torch.testing.assert_close(encoder.features(images), features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(encoder, layer, found, features).float(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", [{"d.0.weight": torch.zeros(1, 5, 5)}, {"d.1.weight": torch.zeros(1, 128)}])
def test_another_discriminator_is_refused(weights, tmp_path, config):
    content, _, _ = made("two_norms")
    with pytest.raises(UsageError, match="does not fit a discriminator"):
        import_run(saved(tmp_path, content | {"discriminator": weights}), RunDir(tmp_path / "run"), config)
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("layout", "bank"),
    [("banks", None), ("two_norms", None), ("banks", "normal"), ("clustered", "pgd_ce"), ("student", None)],
)
def test_an_imported_run_is_ready_to_be_probed(layout, bank, tmp_path, images, config):
    content, banks, projector = made(layout)
    run = RunDir(tmp_path / "run")
    assert import_run(saved(tmp_path, content), run, config, bank=bank) == layout
    name = bank or ("pgd" if "pgd" in banks else "shared")
    encoder = load_encoder(run.path)
    padding = 2 if layout == "student" else 1
    with torch.no_grad():
        theirs = forward(banks[name], images, EXPECTED[layout], padding, layout != "two_norms")
        theirs = F.normalize(theirs, dim=1) if LAYOUTS[layout].normalized else theirs
        torch.testing.assert_close(encoder.features(images), theirs, atol=1e-5, rtol=1e-4)
        benign = forward(next(iter(banks.values())), images, EXPECTED[layout], padding, layout != "two_norms")
        benign = F.normalize(benign, dim=1) if LAYOUTS[layout].normalized else benign
        torch.testing.assert_close(load_encoder(run.path, benign=True).features(images), benign, atol=1e-5, rtol=1e-4)
        if projector is not None and name == "pgd":
            torch.testing.assert_close(encoder(images), projector(theirs), atol=1e-4, rtol=1e-3)
    assert read_projector(run)[0] == ("identity" if projector is None else LAYOUTS[layout].projector[0][0])
    record = read_json(run.pretraining_file)
    assert (record["format"], record["bank"], record["file"]) == (layout, name, "checkpoint.pt")
    assert run.read_config().objective.objective == "imported"


def test_files_without_batch_counts_are_read(tmp_path, images):
    content, banks, _ = made("shortcut")
    content["model"] = {k: v for k, v in content["model"].items() if not k.endswith("num_batches_tracked")}
    published = read(saved(tmp_path, content), backbone_kwargs=SMALL)
    assert all(torch.equal(published.banks["shared"][k], v) for k, v in banks["shared"].items() if "num_b" not in k)


def test_a_large_first_convolution_means_the_native_stem(tmp_path):
    state = network(0, stem="native")
    published = read(saved(tmp_path, state), backbone_kwargs=SMALL, shape=(3, 96, 96), normalization="imagenet")
    assert published.spec.stem == "native"
    assert published.banks["shared"]["conv1.weight"].shape[-1] == 7


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def bad(tmp_path, kind):
    state = network(0) | normalization_buffers(IMAGENET)
    path = tmp_path / "checkpoint.pt"
    if kind == "missing file":
        return tmp_path / "nowhere.pt"
    if kind == "text":
        path.write_text("no checkpoint at all")
        return path
    if kind == "truncated":
        path.write_bytes(saved(tmp_path, state).read_bytes()[:1000])
        return path
    if kind == "raw pickle":
        path.write_bytes(pickle.dumps(Evil()))
        return path
    contents = {
        "no weights": {"epoch": 3, "args": {"lr": 5.0}},
        "list": [1, 2, 3],
        "unknown": {"stem.weight": torch.zeros(2), "blocks.0.weight": torch.zeros(2)},
        "wide": {"module.block1.layer.0.bn1.weight": torch.zeros(2)},
        "missing": {k: v for k, v in state.items() if k != "layer2.0.conv1.weight"},
        "unexpected": state | {"layer9.weight": torch.zeros(2)},
        "shape": state | {"bn1.weight": torch.zeros(3)},
        "pickle": {"state_dict": state, "args": Evil()},
        "our own": {"spec": {"backbone": "resnet18"}, "weights": state},
    }
    return saved(tmp_path, contents[kind])


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing file", "nowhere.pt: no such file"),
        ("text", "damaged or no checkpoint of PyTorch"),
        ("truncated", "damaged or no checkpoint of PyTorch"),
        ("no weights", "holds no weights by name; looked into state_dict_dual, state_dict"),
        ("list", "holds no weights by name"),
        (
            "unknown",
            r"no known layout; tried no weight of two_norms_bottleneck, .*, plain; its first keys: stem.weight",
        ),
        ("wide", "does not fit wrn28_10: missing: conv1.weight and"),
        ("our own", "is a model of acl_plugin already; use the run folder"),
        ("missing", "does not fit resnet18: missing: layer2.0.conv1.weight"),
        ("unexpected", "does not fit resnet18: unexpected: layer9.weight"),
        ("shape", "does not fit resnet18: of another shape: bn1.weight"),
        ("pickle", "holds more than weights, .* could execute any code .* add --allow-pickle"),
        ("raw pickle", "holds more than weights"),
    ],
)
def test_bad_files_are_reported_and_nothing_is_written_or_run(kind, message, tmp_path, config, monkeypatch):
    path = bad(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UsageError, match=message):
        import_run(path, RunDir(tmp_path / "run"), config)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "acl"}, "unknown format 'acl'; allowed: .*auto"),
        ({"layout": "student"}, "does not fit resnet18: missing: conv1.weight"),
        ({"bank": "adv"}, "unknown norm bank of format 'banks': 'adv'; allowed: normal, pgd"),
    ],
)
def test_bad_options_are_reported(options, message, tmp_path, config):
    path = saved(tmp_path, made("banks")[0])
    with pytest.raises(UsageError, match=message):
        import_run(path, RunDir(tmp_path / "run"), config, **options)
    assert not (tmp_path / "run").exists()


def test_more_than_weights_is_read_only_if_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = bad(tmp_path, "pickle")
    published = read(path, backbone_kwargs=SMALL, allow_pickle=True, normalization=None)
    assert published.layout == "plain"
    assert (tmp_path / "evil").exists()  # what the warning is about


@pytest.mark.parametrize("inside", [False, True])
def test_a_whole_network_is_its_weights(inside, tmp_path):
    whole = timm.create_model("resnet18", **SMALL)
    path = saved(tmp_path, {"model": whole, "epoch": 3} if inside else whole)
    with pytest.raises(UsageError, match="holds more than weights"):
        read(path, backbone_kwargs=SMALL, normalization="none")
    published = read(path, backbone_kwargs=SMALL, allow_pickle=True, normalization="none")
    assert torch.equal(published.banks["shared"]["conv1.weight"], whole.conv1.weight)


def test_code_that_is_not_here_is_named(tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(pickle.dumps(Evil(), protocol=2).replace(b"cposix", b"cposiy"))
    with pytest.raises(UsageError, match="needs code that is not here .*posiy.*PYTHONPATH"):
        read(path, allow_pickle=True)


def test_importers_name_their_papers():
    assert all(layout.papers for layout in LAYOUTS.values())


NEVER_STORED = {"clustered": NONE, "shortcut": NONE}
"""Layouts whose networks store no normalization: what their code applies. The others always store one, but for DeACL's
ResNet-50."""


@pytest.mark.e2e
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ELSEWHERE])
def test_a_normalization_that_is_not_stored_is_decided_by_the_layout_or_refused(layout, tmp_path):
    content = made(layout)[0]
    weights = weights_in(content)
    for key in [key for key in weights if "normalize." in key]:
        del weights[key]
    path = saved(tmp_path, content)
    network_of = {"backbone": "resnet50" if "bottleneck" in layout else "resnet18", "backbone_kwargs": SMALL}
    if layout in NEVER_STORED:
        spec = read(path, **network_of).spec
        assert (spec.mean, spec.std) == NEVER_STORED[layout]
    else:
        with pytest.raises(UsageError, match="does not store how its images are normalized") as error:
            read(path, **network_of)
        assert (error.value.parameter, error.value.allowed) == ("normalization", ("none", "cifar", "imagenet"))
    for said, expected in layouts.NORMALIZATIONS.items():
        spec = read(path, **network_of, normalization=said).spec
        assert (spec.mean, spec.std) == expected
    with pytest.raises(UsageError) as error:
        read(path, **network_of, normalization="cifra")
    assert error.value.parameter == "normalization"


@pytest.mark.e2e
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ELSEWHERE])
def test_images_of_one_channel_have_the_mean_of_the_normalization(layout, tmp_path):
    content = made(layout)[0]
    weights = weights_in(content)
    for key, value in list(weights.items()):
        if "normalize." in key:
            del weights[key]
        elif value.dim() == 4 and value.shape[1] == 3:
            weights[key] = value.sum(1, keepdim=True)
    network_of = {"backbone": "resnet50" if "bottleneck" in layout else "resnet18", "backbone_kwargs": SMALL}
    for said, expected in layouts.NORMALIZATIONS.items():
        published = read(saved(tmp_path, content), **network_of, normalization=said, shape=(1, 8, 8))
        assert (published.spec.mean, published.spec.std) == tuple((pytest.approx(sum(v) / 3),) for v in expected)


@pytest.mark.e2e
@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050", "tf_efficientnet_lite0", "densenet121", "seresnet18",
     "convnext_atto", "edgenext_xx_small", "test_byobnet",  # which compute while they are created
     "ghostnet_050"],  # whose names have the marks of another layout
)  # fmt: skip
def test_a_network_of_timm_keeps_its_function_and_head(name, with_head, tmp_path):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10).eval()
    for key, value in theirs.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    linear = theirs.get_classifier()
    headless = timm.create_model(name, num_classes=0).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key in headless.state_dict()}
    headless.load_state_dict(state)
    path = saved(tmp_path, theirs.state_dict() if with_head else state)
    published = read(path, backbone=name, normalization="none", shape=(3, 64, 64))
    network, size = create_backbone(published.spec)
    network.load_state_dict(published.banks["shared"])
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = headless(x)
        torch.testing.assert_close(network.eval()(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert published.layout == "plain"
    assert (published.head is not None) == with_head
    assert not with_head or torch.equal(published.head.weight, linear.weight)
    assert not published.left_out


@pytest.mark.parametrize("layout", ["auto", "plain"])
@pytest.mark.parametrize("head", ["fc", "linear", "head", "classifier", "projector.0"])
@pytest.mark.parametrize("part", ["backbone", "encoder", "momentum_backbone"])
def test_a_network_of_ones_own_is_a_part_of_a_file(layout, head, part, tmp_path):
    if layout == "auto" and head in ("classifier", "projector.0"):
        pytest.skip("these are the names of solo-learn")
    state, path = network(0), tmp_path / "checkpoint.pt"
    size = len(next(value for key, value in reversed(state.items()) if key.endswith("bn2.weight")))
    linear = nn.Linear(size, 10)
    content = prefixed(f"{part}.", state) | prefixed(f"{head}.", linear.state_dict()) | {"queue": torch.rand(2, 2)}
    torch.save({"state_dict": content}, path)
    published = read(path, layout=layout, backbone_kwargs=SMALL, normalization="none")
    assert (published.layout, published.spec.stem) == ("plain", "cifar")
    assert all(torch.equal(published.banks["shared"][key], value) for key, value in state.items())
    is_head = head != "projector.0"
    assert (published.head is not None) == is_head
    assert not is_head or torch.equal(published.head.weight, linear.weight)
    assert set(published.left_out) == {"queue"} | (set() if is_head else {"projector"})


def test_the_network_of_the_option_is_not_recommended(tmp_path):
    state = prefixed("strange.", network(0)) | {"other.x": torch.rand(2)}
    del state["strange.conv1.weight"]
    with pytest.raises(UsageError, match="has no known layout") as error:
        read(saved(tmp_path, state), backbone_kwargs=SMALL)
    assert "give `backbone`" not in str(error.value)


def test_a_stored_normalization_of_other_channels_is_refused(tmp_path):
    state = network(0)
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    path = saved(tmp_path, state | normalization_buffers(IMAGENET))
    with pytest.raises(UsageError, match="does not fit a normalization by mean and std of 1 channels: it stores"):
        read(path, backbone_kwargs=SMALL, shape=(1, 8, 8))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model.backbone.",
               "encoder_q.", "module.model."],
)  # fmt: skip
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict"])
def test_a_prefix_of_all_names_is_left_out(prefix, container, tmp_path):
    state = network(0)
    content = prefixed(prefix, state)
    path = saved(tmp_path, content if container is None else {container: content})
    published = read(path, backbone_kwargs=SMALL, normalization="none")
    assert published.layout == "plain"
    assert all(torch.equal(published.banks["shared"][key], value) for key, value in state.items())


@pytest.mark.e2e
def test_a_stored_normalization_wins_and_another_one_is_refused(tmp_path):
    path = saved(tmp_path, made("plain")[0])
    assert read(path, backbone_kwargs=SMALL, normalization="imagenet").spec.mean == pytest.approx(IMAGENET[0])
    with pytest.raises(UsageError, match="stores another one") as error:
        read(path, backbone_kwargs=SMALL, normalization="none")
    assert (error.value.parameter, error.value.given) == ("normalization", "none")


@pytest.mark.e2e
def test_torchvisions_resnet50_in_deacl_has_no_normalization(tmp_path):
    """As DeACL's code makes it: the first convolution is replaced, and nothing normalizes."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs = resnet50(width_per_group=4)
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    weights = prefixed("backbone.", theirs.state_dict()) | prefixed("momentum_backbone.", network(5))
    path = saved(tmp_path, {"state_dict": weights})
    published = read(path, backbone="resnet50", backbone_kwargs={"base_width": 4})
    backbone = create_backbone(published.spec)[0]
    backbone.load_state_dict(published.banks["shared"])
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (published.spec.mean, published.spec.std))
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()((x - mean) / std), theirs.eval()(x), atol=1e-5, rtol=1e-4)
    assert published.left_out == ("momentum_backbone",)


def whole_head(content, layer):
    """Give a checkpoint a linear layer of 10 outputs, whose names are returned with it."""
    torch.manual_seed(1)
    head = nn.Linear(16, 10)
    container = next((name for name in CONTAINERS if name in content), None)
    weights = content if container is None else content[container]
    parallel = "module." if all(key.startswith("module.") for key in weights) else ""
    weights |= {f"{parallel}{layer}.{leaf}": value for leaf, value in head.state_dict().items()}
    return head


LAYERS = {"banks, pseudo-label head": "fc", "momentum": "encoder_k.fc", "clustered": "fc", "adv_suffix": "fc",
          "shortcut": "linear", "student": "backbone.fc", "plain": "fc"}  # fmt: skip
"""The linear layer of a classifier, by layout."""


@pytest.fixture
def classified(config, monkeypatch):
    """Let the labels of the training images be what a function of them says."""

    def by(logits):
        source = datasets.load(config.data)
        with torch.no_grad():
            labels = logits(source.train.floats()).argmax(1)
        some = dataclasses.replace(source.train, labels=labels)
        monkeypatch.setattr(datasets, "load", lambda config: dataclasses.replace(source, train=some))

    return by


def spread(features):
    """The middle of the features, without which every image is of one class."""
    return features.mean(0)


@pytest.mark.e2e
@pytest.mark.parametrize("layout", LAYERS)
def test_the_head_of_a_classifier_is_kept(layout, tmp_path, images, config, classified, capsys):
    content, banks, _ = made(layout)
    head = whole_head(content, LAYERS[layout])
    state = banks["pgd" if "pgd" in banks else "shared"]
    padding = 2 if layout == "student" else 1

    def logits(x):
        return head(forward(state, x, EXPECTED[layout], padding))

    with torch.no_grad():
        features = forward(state, datasets.load(config.data).train.floats(), EXPECTED[layout], padding)
        head.weight.mul_(50)
        head.bias.copy_(-head.weight @ spread(features))
    classified(logits)
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, content), run, config)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(run.path)(images), logits(images), atol=1e-3, rtol=1e-3)
    record = read_json(run.probe_file)
    assert (record["protocol"], record["n"], record["train_accuracy"]) == ("imported", 20, 1.0)
    told = capsys.readouterr().err
    assert "is the classifier, right on 100.0 %" in told
    assert told.count("\n") == 1


@pytest.mark.e2e
def test_a_complete_import_is_kept_with_what_was_done_since(tmp_path, config, classified):
    content, banks, _ = made("plain")
    head = whole_head(content, LAYERS["plain"])
    classified(lambda x: head(forward(banks["shared"], x, EXPECTED["plain"])))
    run, path = RunDir(tmp_path / "run"), saved(tmp_path, content)
    assert import_run(path, run, config) == "plain"
    assert run.classifier_file.is_file()
    write_json(run.probe_file, {"protocol": "slf", "train_accuracy": 0.5})
    run.classifier_file.write_bytes(b"of a later probe")
    before = contents(run.path)
    assert import_run(path, run, config) == "plain"
    assert contents(run.path) == before
    with pytest.raises(UsageError, match="already contains a run with different settings"):
        import_run(path, run, config.replace(probe_lr=7.0))
    # an import that was killed before its last file goes on
    run.encoder_file.unlink()
    import_run(path, run, config)
    assert read_json(run.probe_file)["weights_sha256"] == weights_hash(load_classifier(run.path))


@pytest.mark.e2e
@pytest.mark.parametrize("layout", [next(iter(LAYERS))])
def test_a_head_at_chance_on_few_images_is_kept_and_named_so(layout, tmp_path, config, capsys):
    content = made(layout)[0]
    whole_head(content, LAYERS[layout])
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, content), run, config)
    assert run.classifier_file.exists()
    told = capsys.readouterr().err
    assert f"the linear head {LAYERS[layout].split('.')[-1]!r} is the classifier, right on" in told
    assert "which is chance on so few" in told


def test_accuracy_shows_trained_heads_from_others():
    labels = torch.arange(1000) % 10
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 10, (1000,), generator=generator)
    often = torch.rand(1000, generator=generator)
    assert accuracies(labels, labels)[::2] == (1.0, 1.0)
    accuracy, chance, _ = accuracies(torch.where(often < 0.3, labels, noise), labels)  # a weak one
    assert accuracy > chance
    for untrained in (noise, torch.zeros(1000, dtype=torch.int64)):
        accuracy, chance, assigned = accuracies(untrained, labels)
        assert accuracy <= chance
        assert assigned < 0.5
    clusters = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9, 3])[labels]  # three of ten are right by luck
    assert accuracies(clusters, labels)[::2] == pytest.approx((0.3, 1.0))


def test_heads_of_pseudo_labels_and_untrained_ones_are_left_out(monkeypatch):
    """DynACL++ saves one whose outputs are clusters in an order of their own, RoCL one that no step has reached."""
    labels = torch.arange(200) % 10
    pixels = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    some = Images(pixels, labels, torch.arange(200), 255, torch.arange(200))
    data = DataSet("cifar10", some, some, tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    spec, backbone = ModelSpec("resnet18", SMALL, "cifar", (3, 32, 32), (0,) * 3, (1,) * 3), network(0)
    head = Head("fc", torch.randn(10, 16), torch.randn(10))
    monkeypatch.setattr("acl_plugin.runs.imported_head.predictions", lambda *_: (labels + 1) % 10)
    judged = judge(head, spec, backbone, data)
    assert judged.classifier is None
    assert "its outputs are other classes, such as pseudo-labels (100.0 % by the best assignment)" in judged.note
    monkeypatch.setattr("acl_plugin.runs.imported_head.predictions", lambda *_: torch.zeros_like(labels))
    judged = judge(head, spec, backbone, data)
    assert judged.classifier is None
    assert "right on 10.0 % of 200 training images, which is chance" in judged.note
    monkeypatch.setattr("acl_plugin.runs.imported_head.predictions", lambda *_: labels)
    assert judge(head, spec, backbone, data).classifier is not None


@pytest.mark.e2e
@pytest.mark.parametrize("linear", [True, False])
def test_a_classifier_beside_the_network_is_its_head(linear, tmp_path, images, config, classified, capsys):
    """As AdvCL's linear evaluation saves it: the network's own linear layer, and its projections, were not trained."""
    clean = network(0)
    own = {"linear.weight": torch.randn(10, 16), "linear.bias": torch.randn(10)}
    own |= {"head_proj.0.weight": torch.randn(4, 16), "head_pred.0.bias": torch.ones(2)}
    model = {k.replace("downsample", "shortcut"): v for k, v in clean.items()} | own
    torch.manual_seed(1)
    head = nn.Linear(16, 10) if linear else nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        if linear:
            features = forward(clean, datasets.load(config.data).train.floats(), NONE)
            head.weight.mul_(50)
            head.bias.copy_(-head.weight @ spread(features))
    classified(lambda x: head(forward(clean, x, NONE)))
    classifier = {f"module.fc{key}" if not linear else f"fc.{key}": value for key, value in head.state_dict().items()}
    path = saved(tmp_path, {"model": model, "classifier": classifier, "epoch": 3})
    run = RunDir(tmp_path / "run")
    assert import_run(path, run, config) == "shortcut"
    told = capsys.readouterr().err
    if not linear:  # never the last of its layers, nor the network's own
        assert not run.classifier_file.exists()
        assert "left out: classifier, head_pred, head_proj, linear" in told
        return
    with torch.no_grad():
        expected = head(forward(clean, images, NONE))
        torch.testing.assert_close(load_classifier(run.path)(images), expected, atol=1e-3, rtol=1e-3)
    assert "left out: head_pred, head_proj, linear" in told


def test_half_a_linear_layer_is_named(tmp_path, config, capsys):
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, made("shortcut")[0]), run, config)
    assert "left out: linear" in capsys.readouterr().err
    assert not run.classifier_file.exists()


def test_other_groups_of_tensors_are_named(tmp_path, config, capsys):
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, made("plain")[0] | {"ema": {"conv1.weight": torch.zeros(2)}}), run, config)
    assert "left out: ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.bn_list.2.weight": torch.ones(8)}, "a norm bank beside normal, pgd"),
        ({"layer2.0.downsample.0.weight": torch.ones(8)}, "twice: layer2.0.downsample.0.weight"),
        ({"normalize.std": None}, "a normalization by mean and std"),
        ({"normalize.std": torch.zeros(3)}, "a normalization by mean and std"),
        ({"conv1.weight": torch.full((8, 3, 3, 3), float("nan"))}, "not finite: conv1.weight"),
        ({"conv1.weight": torch.ones(8, 3, 3, 3, device="meta")}, "no floats: conv1.weight"),
        ({"conv1.weight": torch.ones(8, 3, 3, 3).to_sparse()}, "no floats: conv1.weight"),
        ({"conv1.weight": torch.ones(8, 3, 3, 3, dtype=torch.complex64)}, "no floats: conv1.weight"),
        ({"conv1.weight": torch.ones(8, 3, 3, 3, dtype=torch.int64)}, "no floats: conv1.weight"),
        ({"layer1.0.bn1.bn_list.1.running_var": -torch.ones(8)}, "below 0: layer1.0.bn1.running_var"),
    ],
)
def test_nothing_in_a_file_is_passed_over(change, message, tmp_path):
    weights = {key.removeprefix("module."): value for key, value in made("banks")[0]["state_dict"].items()} | change
    path = saved(tmp_path, {key: value for key, value in weights.items() if value is not None})
    with pytest.raises(UsageError, match=message) as error:
        read(path, backbone_kwargs=SMALL)
    assert error.value.parameter == "file"


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["encoder", "projector", "checkpoint", "export"])
def test_our_own_files_are_named(kind, finished_run):
    """Exports and checkpoints as well: their weights do not show the stem, and the normalization was left out."""
    with pytest.raises(UsageError, match="is a model of acl_plugin already; use the run folder"):
        if kind == "export":
            (file,) = RunDir(finished_run).robustbench_folder.glob("models/*/*/*.pt")
        else:
            file = getattr(RunDir(finished_run), f"{kind}_file")
        read(file)


def test_a_head_for_other_classes_is_named(tmp_path, config, capsys):
    content = made("plain")[0]
    content["state_dict"] |= {"fc.weight": torch.randn(7, 16), "fc.bias": torch.randn(7)}
    run = RunDir(tmp_path / "run")
    import_run(saved(tmp_path, content), run, config)
    assert "left out: the linear head 'fc' (7 outputs on 16 features, here 10 classes" in capsys.readouterr().err
    assert not run.classifier_file.exists()


@pytest.mark.e2e
@pytest.mark.parametrize("core", ["core", "_core"])
def test_states_of_optimizers_need_no_permission(core, tmp_path):
    content = made("banks")[0]
    lr = np.float64(0.1)
    path = saved(tmp_path, content | {"optim": {"state": {}, "param_groups": [{"lr": lr}]}})
    written = f"c{np.float64(0).__reduce__()[0].__module__}\n".encode()
    rebuilt = tmp_path / "other.pt"  # with numpy 1's name or numpy 2's
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rebuilt, "w") as target:
        for info in source.infolist():
            part = source.read(info)
            if info.filename.endswith("data.pkl"):
                assert written in part
                part = part.replace(written, f"cnumpy.{core}.multiarray\n".encode())
            target.writestr(info.filename, part)
    assert read(rebuilt, backbone_kwargs=SMALL).layout == "banks"
