import hashlib
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from acl_plugin import leaderboard, verdicts
from acl_plugin.backbones import Classifier
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard import check_info, eps_text, export, load_exported, model_info, timm_name
from acl_plugin.run_dir import RunDir, weights_hash, write_json, write_model
from acl_plugin.verdicts import Verdict
from conftest import spec

EVALUATION = {
    "dataset": "cifar10",
    "threat_model": "Linf",
    "eps": 8 / 255,
    "n": 10_000,
    "seed": 0,
    "version": "standard",
    "clean_accuracy": 0.78224,
    "robust_accuracy": 0.3917,
    "cumulative_accuracy": {"apgd-ce": 0.4, "apgd-t": 0.3917, "fab-t": 0.3917, "square": 0.3917},
    "flags": [],
}


@pytest.fixture
def run(tmp_path):
    """An evaluated run on CIFAR-10 with random weights."""
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("cifar10"))
    model = Classifier(spec((3, 32, 32), classes=tuple("abcdefghij"))).eval()
    nn.init.normal_(model.head.weight)
    write_model(folder.classifier, model.spec, model.state_dict())
    write_json(folder.evaluation, {**EVALUATION, "weights_sha256": weights_hash(model)})
    verdicts.write(folder.evaluation_lines, [Verdict(i, 0, 0 if i % 5 else 1, None) for i in range(300)])
    return folder, model


def test_model_info_has_robustbenchs_fields_as_it_writes_them(run):
    folder, _ = run
    paper = {"paper_url": "https://arxiv.org/abs/0000.00000", "paper_title": "A Paper", "authors": "A. Author"}
    file = export(folder, preset("cifar10"), name="Author2026Paper", venue="NeurIPS 2026", **paper)
    assert file == folder.robustbench / "model_info" / "cifar10" / "Linf" / "Author2026Paper.json"
    assert json.loads(file.read_text()) == {
        "link": "https://arxiv.org/abs/0000.00000",
        "name": "A Paper",
        "authors": "A. Author",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "NeurIPS 2026",
        "architecture": "resnet10t",
        "eps": "8/255",
        "clean_acc": "78.22",
        "reported": "39.17",
        "autoattack_acc": "39.17",
    }


@pytest.mark.parametrize(
    ("change", "footnote"),
    [
        ({"dataset": "digits"}, "local: digits is not on RobustBench"),
        ({"n": 100}, "subset: the first 100 of 10000 test images"),
    ],
)
def test_results_that_are_not_for_the_leaderboard_say_so(change, footnote):
    info = model_info(EVALUATION | change, spec())
    assert "autoattack_acc" not in info
    assert footnote in info["footnote"]


def test_without_a_paper_it_is_a_draft(run):
    folder, _ = run
    info = json.loads(export(folder, preset("cifar10"), name="Mine").read_text())
    assert info["footnote"] == "draft: no paper URL"
    assert "autoattack_acc" in info
    write_json(folder.evaluation, json.loads(folder.evaluation.read_text()) | {"n": 100})
    info = json.loads(export(folder, preset("cifar10"), name="Mine").read_text())
    assert info["footnote"].startswith("draft: no paper URL; subset: the first 100")


def test_square_makes_a_result_unreliable():
    assert model_info(EVALUATION | {"flags": ["Square broke more than"]}, spec())["unreliable"] is True
    assert "unreliable" not in model_info(EVALUATION | {"flags": ["there are 3 points with zero gradient!"]}, spec())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean_acc": 78.22}, "field 'clean_acc' is 78.22"),
        ({"clean_acc": "0.7822345"}, "field 'clean_acc' is '0.7822345'"),
        ({"eps": "8 / 255"}, "field 'eps'"),
        ({"eps": 8 / 255}, "field 'eps'"),
        ({"link": None}, "field 'link' is None"),
        ({"link": "arxiv"}, "field 'link' is 'arxiv'"),
        ({"number_forward_passes": "1"}, "field 'number_forward_passes'"),
        ({"additional_data": 0}, "field 'additional_data' is 0"),
        ({"acc": "1.00"}, "unknown field of model_info 'acc'"),
        ({"venue": "a\nb"}, "field 'venue'"),
    ],
)
def test_what_is_no_model_info_is_told(change, message):
    info = model_info(EVALUATION, spec()) | {"link": "", "name": "A", "authors": "B", "venue": "C"}
    check_info(info)
    with pytest.raises(UsageError, match=message):
        check_info(info | change)
    with pytest.raises(UsageError, match="model_info has no 'venue'"):
        check_info({k: v for k, v in info.items() if k != "venue"})


def test_bad_urls_write_nothing(run):
    folder, _ = run
    with pytest.raises(UsageError, match="'link' is 'arxiv 0000'"):
        export(folder, preset("cifar10"), paper_url="arxiv 0000")
    assert not folder.robustbench.exists()


def test_eps_as_text():
    assert eps_text(8 / 255) == "8/255"
    assert eps_text(0.1) == "0.1"
    assert eps_text(0.5) == "0.5"


CODE = """
import acl_plugin
import robustbench, torch, sys
name, checkpoint, x, out = sys.argv[1:]
model = robustbench.load_model(name, dataset="cifar10", threat_model="Linf", custom_checkpoint=checkpoint)
assert not any(m.training for m in model.modules())
torch.save(model(torch.load(x)).detach(), out)
"""


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_robustbench_loads_it_in_a_new_process(run, tmp_path, with_checkpoint):
    folder, model = run
    export(folder, preset("cifar10"), name="Author2026Paper-R18")
    weights = folder.robustbench / "models" / "cifar10" / "Linf" / "Author2026Paper-R18.pt"
    x = torch.rand(5, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    checkpoint = str(weights) if with_checkpoint else ""
    arguments = ["Author2026Paper-R18", checkpoint, str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(x).detach(), atol=1e-6, rtol=0)


def test_robustbench_benchmark_reports_our_clean_accuracy(run, cifar10_dir, few):
    import robustbench

    from acl_plugin import data
    from acl_plugin.evaluate import evaluate
    from acl_plugin.linear_head import predictions

    folder, _ = run
    export(folder, preset("cifar10"), name="Benchmarked")
    model = robustbench.load_model("Benchmarked", dataset="cifar10", threat_model="Linf")
    clean, robust = robustbench.benchmark(
        model, n_examples=40, dataset="cifar10", threat_model="Linf", eps=8 / 255, data_dir=str(cifar10_dir)
    )
    config = preset("cifar10", data_dir=cifar10_dir, limit_test=40)
    images = data.load(config).test
    assert clean == pytest.approx((predictions(model, images) == images.labels).double().mean().item())
    for file in (folder.evaluation, folder.evaluation_lines):
        file.unlink()
    ours = evaluate(folder, config, torch.device("cpu"))
    assert ours["clean_accuracy"] == pytest.approx(clean)
    assert abs(ours["robust_accuracy"] - robust) <= 1 / 40  # another seed may break one image more


def test_weights_are_what_was_exported(run):
    folder, model = run
    export(folder, preset("cifar10"), name="Mine")
    path = folder.robustbench / "export.json"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_exported(path, 10).state_dict().items())
    weights = folder.robustbench / json.loads(path.read_text())["weights"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == json.loads(path.read_text())["sha256"]
    with pytest.raises(UsageError, match="10 classes, not 100"):
        load_exported(path, 100)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match="is not the file that was exported"):
        load_exported(path)
    weights.unlink()
    with pytest.raises(UsageError, match="damaged or incomplete"):
        load_exported(path)


def test_a_moved_export_is_no_longer_registered(run):
    import timm

    folder, _ = run
    export(folder, preset("cifar10"), name="Moved")
    (folder.robustbench / "export.json").unlink()
    leaderboard.register_exports()
    assert timm_name("Moved", "cifar10", "Linf") == "moved_cifar10_linf"
    assert not timm.is_model("never_exported_cifar10_linf")


def test_mistakes_are_told(run, tmp_path):
    folder, model = run
    with pytest.raises(UsageError, match="--name '../x': allowed are letters"):
        export(folder, preset("cifar10"), name="../x")
    other = Classifier(model.spec)
    write_model(folder.classifier, other.spec, other.state_dict())
    with pytest.raises(UsageError, match=r"evaluation.json is of another classifier; delete it and run"):
        export(folder, preset("cifar10"))
    folder.evaluation.unlink()
    with pytest.raises(UsageError, match=r"evaluation.json is missing; run first: acl-plugin evaluate"):
        export(folder, preset("cifar10"))
    assert not folder.robustbench.exists()
