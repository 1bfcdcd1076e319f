"""What a reviewer gets is enough to rebuild the model and to read the claim."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_leaderboard import EVALUATION
from torch import nn

from acl_plugin import submission, verdicts
from acl_plugin.backbones import Classifier
from acl_plugin.config import preset
from acl_plugin.leaderboard import export
from acl_plugin.run_dir import RunDir, weights_hash, write_json, write_model
from acl_plugin.verdicts import Verdict
from conftest import spec

PAPER = {"paper_url": "https://arxiv.org/abs/0000.00000", "paper_title": "A Paper", "authors": "A. Author"}
BACKBONES = [
    ("resnet10t", {"stem_width": 4, "channels": [4, 8, 8, 8]}, "cifar"),
    ("resnet18", {"channels": [8, 8, 8, 8]}, "cifar_padding_2"),
    ("resnet18", {"channels": [8, 8, 8, 8]}, "native"),
    ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24}, "cifar"),
    ("mobilenetv3_small_050", {}, "cifar"),
    ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}, "cifar"),
    ("mixer_s16_224", {}, "cifar"),
]


def exported(tmp_path, backbone="resnet10t", kwargs=None, stem="cifar", **options):
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("cifar10"))
    model = Classifier(spec((3, 32, 32), backbone, kwargs, tuple("abcdefghij"), stem)).eval()
    nn.init.normal_(model.head.weight)
    write_model(folder.classifier, model.spec, model.state_dict())
    write_json(
        folder.evaluation, {**EVALUATION, "weights_sha256": weights_hash(model), **options.pop("evaluation", {})}
    )
    verdicts.write(folder.evaluation_lines, [Verdict(i, 0, 0 if i % 5 else 1, None) for i in range(300)])
    export(folder, preset("cifar10"), name="Author2026Paper", **options)
    return folder, model


REVIEWER = """
import sys
sys.modules["acl_plugin"] = None  # a reviewer does not have it
import torch, timm
sys.path.insert(0, sys.argv[1])
import Author2026Paper
model = timm.create_model("author2026paper_cifar10_linf")
assert not any(m.training for m in model.modules())
torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


@pytest.mark.parametrize(("backbone", "kwargs", "stem"), BACKBONES)
def test_the_stub_rebuilds_the_model_without_this_package(tmp_path, backbone, kwargs, stem):
    folder, model = exported(tmp_path, backbone, kwargs, stem)
    x = torch.rand(4, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    arguments = [
        str(folder.robustbench / "submission" / "Author2026Paper"),
        str(tmp_path / "x.pt"),
        str(tmp_path / "out.pt"),
    ]
    command = [sys.executable, "-W", "ignore", "-c", REVIEWER, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_the_folder_is_complete_and_agrees_with_itself(tmp_path):
    folder, model = exported(tmp_path, **PAPER)
    files = {p.name: p for p in (folder.robustbench / "submission" / "Author2026Paper").iterdir()}
    assert set(files) == {
        "Author2026Paper.json", "Author2026Paper.safetensors", "Author2026Paper.safetensors.sha256",
        "Author2026Paper.py", "model_zoo.py", "NEW_MODEL.md", "repeat.sh", "evaluation.json", "evaluation.jsonl",
    }  # fmt: skip
    weights = load_file(files["Author2026Paper.safetensors"])
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    digest = hashlib.sha256(files["Author2026Paper.safetensors"].read_bytes()).hexdigest()
    assert files["Author2026Paper.safetensors.sha256"].read_text().split()[0] == digest
    assert digest in files["Author2026Paper.py"].read_text()
    text = files["NEW_MODEL.md"].read_text()
    assert digest in text
    for line in ("# [New Model] Author2026Paper", "- Paper Title: A Paper", f"- Paper URL: {PAPER['paper_url']}",
                 "- Paper authors: A. Author", "- Dataset: cifar10", "- Threat Model: Linf", "- eps: 8/255",
                 "- Clean accuracy: 78.22", "- Robust accuracy: 39.17", "- Additional data: false"):  # fmt: skip
        assert line in text.splitlines()
    assert "Draft" not in text
    assert "None" not in text
    info = json.loads(files["Author2026Paper.json"].read_text())
    assert info == json.loads((folder.robustbench / "model_info/cifar10/Linf/Author2026Paper.json").read_text())
    assert files["evaluation.jsonl"].read_bytes() == folder.evaluation_lines.read_bytes()
    assert "acl-plugin evaluate RUN --eps 0.03137" in files["repeat.sh"].read_text()


def test_a_draft_and_a_subset_say_so(tmp_path):
    folder, _ = exported(tmp_path, evaluation={"n": 100})
    text = (folder.robustbench / "submission" / "Author2026Paper" / "NEW_MODEL.md").read_text()
    assert "> Draft: a public paper is needed" in text
    assert "- Robust accuracy: 39.17 (not for the leaderboard: draft: no paper URL; subset: the first 100" in text


@pytest.mark.parametrize(
    ("dataset", "clean", "wrong", "expected"),
    [
        ("cifar10", 0.80, 0.2, "passes: clean accuracy 0.800 on the first 200"),
        ("cifar10", 0.60, 0.4, "fails: clean accuracy 0.600"),
        ("cifar10", 0.90, 0.2, "fails"),  # too far from what is reported
        ("cifar100", 0.50, 0.5, "passes"),
        ("digits", 0.99, 0.0, "none: RobustBench has no test on digits"),
    ],
)
def test_robustbenchs_own_thresholds(tmp_path, dataset, clean, wrong, expected):
    run = RunDir(tmp_path)
    lines = [Verdict(i, 0, int(i % 10 < 10 * wrong), None) for i in range(250)]
    verdicts.write(run.evaluation_lines, lines)
    found = submission.acceptance(run, {"dataset": dataset, "clean_accuracy": clean})
    assert found.startswith(expected)
    run.evaluation_lines.unlink()
    if dataset != "digits":
        assert submission.acceptance(run, {"dataset": dataset, "clean_accuracy": clean}).startswith("not run")
