"""Teachers of timm: their features are those of timm's model, at any input size, and students may be other networks."""

import json

import pytest
import torch
from test_pretrained import made, stored

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.provenance import additional_data
from acl_plugin.models.pretrained_teacher import Pretrained
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from acl_plugin.training.build import build
from conftest import OPTIONS, TINY

NAME = "resnet18"
TINY_VIT = {"depth": 1, "embed_dim": 12, "num_heads": 2}
WIDE = {"channels": [8, 8, 8, 24]}


@pytest.fixture
def teacher(tmp_path):
    """A larger network than the students of these tests, in a file."""
    return {"timm": NAME, "file": str(stored(made(NAME, **WIDE), tmp_path / "w.safetensors")), "input_size": 64,
            "backbone_kwargs": WIDE}  # fmt: skip


@pytest.mark.parametrize("size", [32, 48, 64])
def test_features_are_those_of_timms_model_at_its_own_input_size(teacher, size):
    theirs = made(NAME, **WIDE)
    encoder = Pretrained.of(teacher | {"input_size": size}).load((3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    larger = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features((larger - mean) / std), pre_logits=True)
        torch.testing.assert_close(encoder.features(x), expected, atol=1e-4, rtol=1e-4)
    assert not encoder.training


def test_a_name_alone_has_the_weights_and_the_size_of_timms_hub():
    assert Pretrained.of("timm:resnet18.a1_in1k") == Pretrained("resnet18.a1_in1k")
    assert Pretrained.of("runs/teacher") is None
    assert Pretrained.of(None) is None


@pytest.mark.e2e
@pytest.mark.parametrize("adapter", ["linear", "mlp"])
@pytest.mark.parametrize(("name", "own"), [("deacl", {}), ("profeat", {"projector_weight": 0})])
def test_a_student_of_another_network_learns_through_an_adapter(name, own, adapter, teacher):
    settings = {"teacher": teacher, "initialize": False, "adapter": adapter, **own}
    config = preset("digits", **TINY | {"objective": name, "objective_kwargs": settings})
    data = datasets.load(config.data)
    module = build(config, data)
    objective, few = module.objective, data.train.take(torch.arange(8))
    before = {key: value.clone() for key, value in objective.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(objective.param_groups(module.model), lr=0.1)
    values = []
    for _ in range(6):
        optimizer.zero_grad()
        terms = objective.backward(module.model, module.views_of(few.pixels, few.rows), module.attack)
        optimizer.step()
        values.append(terms.parts["distillation"].item())
    assert values[-1] < values[0]
    assert objective.adapted(torch.rand(2, 8)).shape == (2, 24)
    assert all(p.grad is not None for p in objective.adapter.parameters())
    assert all(torch.equal(value, before[key]) for key, value in objective.teacher.state_dict().items())


@pytest.mark.e2e
def test_a_run_with_such_a_teacher_resumes_without_its_file_and_names_its_data(teacher, tmp_path):
    settings = {"teacher": teacher, "initialize": False, "adapter": "linear"}
    options = [*OPTIONS, "--objective=deacl", "--objective-kwargs", json.dumps(settings), "--epochs=1"]
    assert main(["pretrain", "--out", str(tmp_path / "run"), *options]) == 0
    assert load_encoder(tmp_path / "run").size == 8
    known, why = additional_data(RunDir(tmp_path / "run"), "digits")
    assert known
    assert why == "taught by the pretrained weights resnet18"


@pytest.mark.parametrize("name", ["deacl", "profeat"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initialize": False}, "teacher have size 24, those of the student 8: give adapter linear or mlp"),
        ({}, "teacher is another network: backbone resnet18, here resnet10t.*give initialize false"),
        ({"adapter": "linear"}, "adapter 'linear' is for a student of another network than the teacher"),
        ({"initialize": False, "adapter": "cubic"}, "unknown adapter 'cubic'; allowed: linear, mlp, none"),
        ({"teacher": "timm:resnet81"}, "teacher resnet81: unknown backbone 'resnet81'; the nearest"),
        ({"teacher": "timm:gsa_resnet18"}, "teacher gsa_resnet18: timm has no weights of 'gsa_resnet18'; allowed is"),
        ({"teacher": {"timm": "resnet18", "file": "nowhere"}}, "teacher resnet18: its `file` nowhere: no such file"),
        ({"teacher": {"timm": "resnet18", "size": 3}}, "teacher .*'size': 3.*: allowed is a run folder, timm:NAME, or"),
        ({"teacher": {"timm": "resnet18", "input_size": "64"}}, "`teacher.input_size` '64': allowed is"),
        (
            {"teacher": {"timm": "vit_small_patch14_dinov2", "input_size": 33, "backbone_kwargs": TINY_VIT}},
            "teacher vit_small_patch14_dinov2: `input_size` 33: .* does not take it .* no influence.*; it takes 42",
        ),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_one_line_that_says_what_would_work(name, settings, message, teacher):
    own = {"projector_weight": 0} if name == "profeat" else {}
    config = preset("digits", **TINY | {"objective": name, "objective_kwargs": {"teacher": teacher, **own, **settings}})
    with pytest.raises(UsageError, match=message) as error:
        build(config, datasets.load(config.data))
    assert "\n" not in str(error.value)


def test_profeat_needs_a_projector_or_none_at_all(teacher):
    settings = {"teacher": teacher, "initialize": False}
    for own, message in (
        ({}, "no projector of the student's kind.*projector_weight 0"),
        ({"adapter": "mlp"}, "needs projector_weight 0"),
    ):
        config = preset("digits", **TINY | {"objective": "profeat", "objective_kwargs": settings | own,
                        "backbone_kwargs": TINY["backbone_kwargs"] | {"channels": [4, 8, 8, 24]}})  # fmt: skip
        with pytest.raises(UsageError, match=message):
            build(config, datasets.load(config.data))
