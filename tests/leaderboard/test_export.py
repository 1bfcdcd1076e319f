import dataclasses
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from acl_plugin.attacks.catalogue import attack_names
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.storage import read_verdicts, write_verdicts
from acl_plugin.evaluation.verdicts import Verdict
from acl_plugin.leaderboard import index, registration, whole_run
from acl_plugin.leaderboard.architectures import architecture
from acl_plugin.leaderboard.export import export
from acl_plugin.leaderboard.index import index_path, read_index, timm_name
from acl_plugin.leaderboard.model_info import check_info, eps_text, model_info
from acl_plugin.leaderboard.provenance import additional_data, sources
from acl_plugin.leaderboard.registration import load_exported
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.timm_names import backbone_names
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.registry import ATTACKS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, load_encoder, weights_hash, write_encoder, write_model
from acl_plugin.runs.pseudo_labels import read_pseudo_labels, write_pseudo_labels
from acl_plugin.runs.transfer import transfer, transferred
from acl_plugin.runtime.files import read_json, write_json
from acl_plugin.training.pretrain import pretrain
from conftest import TINY, shorten, spec

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
    "batch_size": 500,
    "images": {
        "n": 10_000,
        "size": [3, 32, 32],
        "classes": list("abcdefghij"),
        "pixels": "",
        "labels": "",
        "content": "",
    },
}
CIFAR = spec((3, 32, 32), classes="abcdefghij")
PAPER = {"paper_url": "https://arxiv.org/abs/0000.00000", "paper_title": "A Paper", "authors": "A. Author"}


@pytest.fixture
def run(tmp_path):
    """An evaluated run on CIFAR-10 with random weights."""
    torch.manual_seed(0)
    return evaluated(RunDir(tmp_path / "run"))


def evaluated(folder, backbone="resnet10t", kwargs=None, **evaluation):
    folder.start(preset("cifar10"))
    write_json(folder.pretraining_file, {"seconds": 1.0})
    model = Classifier(spec((3, 32, 32), backbone, kwargs, tuple("abcdefghij"))).eval()
    nn.init.normal_(model.head.weight)
    write_model(folder.classifier_file, model.spec, model.state_dict())
    found = {**EVALUATION, "weights_sha256": weights_hash(model), **evaluation}
    write_json(folder.evaluation_file, found)
    write_verdicts(folder.verdicts_file, [Verdict(i, 0, 0 if i % 5 else 1, None) for i in range(found["n"])])
    return folder, model


@pytest.mark.e2e
def test_model_info_has_robustbenchs_fields_as_it_writes_them(run):
    folder, _ = run
    file = export(folder, name="Author2026Paper", venue="NeurIPS 2026", **PAPER)
    assert file == folder.robustbench_folder / "model_info" / "cifar10" / "Linf" / "Author2026Paper.json"
    info = json.loads(file.read_text())
    assert list(info)[:4] == ["link", "name", "authors", "additional_data"]  # as in every merged file
    assert info == {
        "link": "https://arxiv.org/abs/0000.00000",
        "name": "A Paper",
        "authors": "A. Author",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "NeurIPS 2026",
        "architecture": "ResNet-10t (stem_width 4, width 4-8)",
        "eps": "8/255",
        "clean_acc": "78.22",
        "reported": "39.17",
        "autoattack_acc": "39.17",
        "unreliable": False,
    }


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("change", "footnote"),
    [
        ({"dataset": "digits"}, "local: digits is not on RobustBench"),
        ({"n": 100}, "subset: 100 of 10000 test images; AutoAttack standard on 100 of 10000 test images, seed 0"),
        ({"eps": 4 / 255}, "local: eps 4/255, and RobustBench takes 8/255"),
        ({"threat_model": "L2", "eps": 1.0}, "local: eps 1, and RobustBench takes 0.5"),
        ({"dataset": "cifar100", "threat_model": "L2", "eps": 0.5}, "local: RobustBench has no L2 leaderboard"),
        ({"dataset": "cifar10_val"}, "local: cifar10_val is not on RobustBench"),
        ({"shape": (3, 64, 64)}, "local: images of 3x64x64, and RobustBench takes 3x32x32"),
    ],
)
def test_results_that_are_not_for_the_leaderboard_stay_out_of_model_info(tmp_path, change, footnote):
    change = dict(change)
    shape = change.pop("shape", (3, 32, 32))
    info = model_info(EVALUATION | change, spec(shape))
    assert "autoattack_acc" not in info
    assert footnote in info["footnote"]
    if shape == (3, 32, 32):
        folder, _ = evaluated(RunDir(tmp_path / "run"), **change)
        file = export(folder, name="Mine", additional_data=True)
        assert file.is_relative_to(folder.robustbench_folder / "local" / "model_info")
        assert not (folder.robustbench_folder / "model_info").exists()
        assert "> Not for submission: " in (file.parents[3] / "submission" / "Mine" / "NEW_MODEL.md").read_text()


@pytest.mark.e2e
def test_a_later_export_of_the_other_kind_replaces_the_files(run):
    folder, _ = run
    whole = export(folder, name="Mine", **PAPER)
    result, verdicts = json.loads(folder.evaluation_file.read_text()), read_verdicts(folder.verdicts_file)
    write_json(folder.evaluation_file, result | {"n": 100})
    with pytest.raises(UsageError, match="it has 10000 lines, for 100 images"):
        export(folder, name="Mine", **PAPER)
    write_verdicts(folder.verdicts_file, verdicts[:100])
    part = export(folder, name="Mine", **PAPER)
    assert part.is_file()
    assert not whole.exists()
    assert not (folder.robustbench_folder / "submission" / "Mine").exists()
    write_json(folder.evaluation_file, result)
    write_verdicts(folder.verdicts_file, verdicts)
    export(folder, name="Mine", **PAPER)
    assert whole.is_file()
    assert not part.exists()


@pytest.mark.parametrize(
    ("backbone", "kwargs", "name"),
    [
        ("resnet18", {}, "ResNet-18"),
        ("resnet50.a1_in1k", {}, "ResNet-50"),
        ("resnet18", {"channels": [16, 32, 64, 128]}, "ResNet-18 (width 16-128)"),
        ("wide_resnet50_2", {}, "WideResNet-50-2"),
        ("wideresnet28_10", {}, "WideResNet-28-10"),
        ("preactresnet18", {}, "PreActResNet-18"),
        ("densenet121", {}, "DenseNet-121"),
        ("resnext50_32x4d", {}, "ResNeXt50_32x4d"),
        ("vit_base_patch16_224", {}, "ViT-B"),
        ("vit_tiny_patch16_224", {"depth": 1}, "ViT-T (depth 1)"),
        ("deit_small_patch16_224", {}, "DeiT Small"),
        ("swin_large_patch4_window7_224", {}, "Swin-L"),
        ("convnext_tiny", {}, "ConvNeXt-T"),
        ("convnextv2_large", {}, "ConvNeXtV2-L"),
        ("xcit_small_12_p16_224", {}, "XCiT-S12"),
        ("resnet50_gn", {}, "resnet50_gn of timm"),
    ],
)
def test_architectures_in_robustbenchs_spelling(backbone, kwargs, name):
    assert architecture(spec((3, 32, 32), backbone, kwargs)) == name


@pytest.mark.e2e
def test_without_a_paper_it_is_a_draft(run):
    folder, _ = run
    info = json.loads(export(folder, name="Mine").read_text())
    assert info["footnote"] == "draft: paper URL, paper title, authors missing"
    assert info["name"] == ""
    assert "autoattack_acc" in info
    write_json(folder.evaluation_file, json.loads(folder.evaluation_file.read_text()) | {"n": 100})
    write_verdicts(folder.verdicts_file, read_verdicts(folder.verdicts_file)[:100])
    info = json.loads(export(folder, name="Mine", paper_title="A").read_text())
    assert info["footnote"].startswith("draft: paper URL, authors missing; subset: 100 of 10000")


def test_square_makes_a_result_unreliable():
    assert model_info(EVALUATION | {"flags": ["Square broke more than"]}, CIFAR)["unreliable"] is True
    harmless = ["there are 3 points with zero gradient!"]
    assert model_info(EVALUATION | {"flags": harmless}, CIFAR)["unreliable"] is False


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
def test_what_is_no_model_info_is_reported(change, message):
    info = model_info(EVALUATION, CIFAR) | {"link": "", "name": "A", "authors": "B", "venue": "C"}
    check_info(info)
    with pytest.raises(UsageError, match=message):
        check_info(info | change)
    with pytest.raises(UsageError, match="model_info has no 'venue'"):
        check_info({k: v for k, v in info.items() if k != "venue"})


def test_bad_urls_write_nothing(run):
    folder, _ = run
    with pytest.raises(UsageError, match="'link' is 'arxiv 0000'"):
        export(folder, paper_url="arxiv 0000")
    assert not folder.robustbench_folder.exists()


def test_eps_as_text():
    assert eps_text(8 / 255) == "8/255"
    assert eps_text(0.1) == "0.1"
    assert eps_text(0.5) == "0.5"


CODE = """
import acl_plugin
import robustbench, torch, sys
name, weights, x, out = sys.argv[1:]
found = []
for checkpoint in ("", weights):
    model = robustbench.load_model(name, dataset="cifar10", threat_model="Linf", custom_checkpoint=checkpoint)
    assert not any(m.training for m in model.modules())
    found.append(model(torch.load(x)).detach())
torch.save(found, out)
"""


@pytest.mark.e2e
@pytest.mark.parametrize(("backbone", "kwargs"), [("resnet10t", None), ("wrn34_10", {"depth": 10, "width": 1})])
def test_robustbench_loads_it_in_a_new_process_with_and_without_the_file(backbone, kwargs, tmp_path):
    folder, model = evaluated(RunDir(tmp_path / "run"), backbone, kwargs)
    export(folder, name="Author2026Paper-R18")
    weights = folder.robustbench_folder / "models" / "cifar10" / "Linf" / "Author2026Paper-R18.pt"
    x = torch.rand(5, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    arguments = ["Author2026Paper-R18", str(weights), str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    for found in torch.load(tmp_path / "out.pt"):
        torch.testing.assert_close(found, model(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.e2e
def test_robustbench_benchmark_reports_our_clean_accuracy(run, cifar10_dir, monkeypatch):
    import robustbench

    from acl_plugin.evaluation.run_folder import evaluate
    from acl_plugin.models.features import predictions

    shorten(monkeypatch.setattr, 5, 50)  # enough that two seeds break the same, up to an image
    folder, _ = run
    export(folder, name="Benchmarked")
    model = robustbench.load_model("Benchmarked", dataset="cifar10", threat_model="Linf")
    clean, robust = robustbench.benchmark(
        model, n_examples=40, dataset="cifar10", threat_model="Linf", eps=8 / 255, data_dir=str(cifar10_dir)
    )
    config = preset("cifar10", data_dir=cifar10_dir)
    whole = datasets.load(config.data)
    images = whole.test.take(torch.arange(40))  # as robustbench takes them, and not as a limit does
    monkeypatch.setattr(datasets, "load", lambda _: dataclasses.replace(whole, test=images, classes=model.spec.classes))
    assert clean == pytest.approx((predictions(model, images) == images.labels).double().mean().item())
    for file in (folder.evaluation_file, folder.verdicts_file):
        file.unlink()
    ours = evaluate(folder, config, torch.device("cpu"))
    assert ours["clean_accuracy"] == pytest.approx(clean)
    assert abs(ours["robust_accuracy"] - robust) <= 1 / 40  # another seed may break one image more


@pytest.mark.e2e
def test_weights_are_what_was_exported(run):
    folder, model = run
    export(folder, name="Mine")
    path = folder.robustbench_folder / "models" / "cifar10" / "Linf" / "Mine.json"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_exported(path, 10).state_dict().items())
    weights = path.parent / json.loads(path.read_text())["weights"]
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
    export(folder, name="Moved")
    (folder.robustbench_folder / "models" / "cifar10" / "Linf" / "Moved.json").unlink()
    registration.register_exports()
    assert timm_name("Moved", "cifar10", "Linf") == "moved_cifar10_linf"
    assert not timm.is_model("never_exported_cifar10_linf")


@pytest.mark.e2e
def test_the_name_by_default_is_a_name(run):
    folder, _ = run
    folder.record_config(
        folder.read_config().replace(objective="3sat", objective_kwargs={}, backbone="resnet10t.c3_in1k")
    )
    assert export(folder).name == "model_3sat_resnet10t_c3_in1k.json"


def test_mistakes_are_reported(run, tmp_path):
    folder, model = run
    for name in ("../x", "Rice2020Overfitting", "rice2020-overfitting".replace("-", ""), "torch", "JSON",
                 "class"):  # fmt: skip  # two are RobustBench's own
        with pytest.raises(UsageError) as error:
            export(folder, name=name)
        assert (error.value.parameter, error.value.given) == ("name", name)
    other = Classifier(model.spec)
    write_model(folder.classifier_file, other.spec, other.state_dict())
    with pytest.raises(UsageError, match=r"evaluation.json is of another classifier; delete it and run"):
        export(folder)
    folder.evaluation_file.unlink()
    with pytest.raises(UsageError, match=r"evaluation.json is missing; run first: acl-plugin evaluate"):
        export(folder)
    assert not folder.robustbench_folder.exists()


@pytest.mark.e2e
def test_a_name_is_not_taken_from_another_run(run, tmp_path):
    import timm

    folder, _ = run
    export(folder, name="Mine")
    export(folder, name="Mine")  # its own
    other, newer = evaluated(RunDir(tmp_path / "other"))
    nn.init.ones_(newer.head.weight)
    write_model(other.classifier_file, newer.spec, newer.state_dict())
    result = json.loads(other.evaluation_file.read_text())
    write_json(other.evaluation_file, result | {"weights_sha256": weights_hash(newer)})
    x = torch.rand(3, 3, 32, 32)
    for name in ("Mine", "mine"):  # which are one for robustbench.load_model
        with pytest.raises(UsageError) as error:
            export(other, name=name)
        assert error.value.parameter == "name"
        assert not other.robustbench_folder.exists()
    assert torch.equal(timm.create_model("mine_cifar10_linf")(x), load_classifier(folder.path)(x))
    export(other, name="Mine", overwrite=True)
    assert torch.equal(timm.create_model("mine_cifar10_linf")(x), load_classifier(other.path)(x))
    with pytest.raises(UsageError):  # and not back
        export(folder, name="Mine")
    shutil.rmtree(other.path)
    export(folder, name="Mine")  # free again
    assert torch.equal(timm.create_model("mine_cifar10_linf")(x), load_classifier(folder.path)(x))


def test_exports_at_the_same_time_are_all_in_the_index():
    index_path().parent.mkdir(parents=True, exist_ok=True)

    def add(number):
        with index.index_locked():
            write_json(index_path(), read_index() | {f"name{number}": "path"})

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(add, range(20)))
    assert len(read_index()) == 20


def test_exported_classifiers_are_no_backbones(run):
    folder, _ = run
    export(folder, name="Mine")
    assert backbone_names("mine*") == []
    for name in ("mine_cifar10_linf", "mine_cifar10_linf.tag"):
        with pytest.raises(UsageError) as error:
            create_backbone(spec((3, 32, 32), name, {}))
        assert "mine_cifar10_linf" not in error.value.allowed
    assert backbone_names("resnet18") == ["resnet18"]


@pytest.mark.parametrize(
    ("pretraining", "data", "expected"),
    [
        ({"seconds": 1.0}, "cifar10", (False, "pretrained and probed on cifar10 alone")),
        ({"transferred_from": "cifar10_val"}, "cifar10", (False, "pretrained and probed on cifar10 alone")),
        ({"transferred_from": "cifar10"}, "cifar10_val", (True, "pretrained on cifar10")),
        ({"transferred_from": "stl10"}, "cifar10", (True, "pretrained on stl10")),
        ({"transferred_from": "image_folder"}, "cifar10", (True, "pretrained on image_folder")),
        ({"unlabeled": "photos"}, "cifar10", (True, "pretrained on unlabeled images (photos)")),
        ({"transferred_from": "stl10_unlabeled"}, "stl10", (False, "pretrained and probed on stl10 alone")),
    ],
)
def test_additional_data_follows_what_the_run_saw(tmp_path, pretraining, data, expected):
    run = RunDir(tmp_path / "run")
    run.start(preset(data))
    write_json(run.pretraining_file, pretraining)
    assert additional_data(run, data) == expected
    if expected[0]:
        with pytest.raises(UsageError) as error:
            additional_data(run, data, False)
        assert (error.value.parameter, error.value.given, error.value.allowed) == ("additional_data", False, (True,))
    else:
        assert additional_data(run, data, True) == (True, "stated by the author")


@pytest.mark.parametrize("case", ["imported", "no_record", "no_teacher", "imported_teacher", "old_labels", "a_file"])
def test_additional_data_is_requested_where_no_file_decides(tmp_path, case):
    run, teacher, labels = RunDir(tmp_path / "run"), RunDir(tmp_path / "teacher"), tmp_path / "labels.npz"
    settings = {
        "imported": {"file": "acl.pt"}, "no_record": {}, "no_teacher": {"teacher": str(teacher.path)},
        "imported_teacher": {"teacher": str(teacher.path)}, "old_labels": {"pseudo_labels": str(labels)},
        "a_file": {"anything": str(tmp_path)},
    }[case]  # fmt: skip
    objective = {"imported": "imported", "old_labels": "advcl"}.get(case, "deacl")
    run.start(preset("cifar10", objective=objective, objective_kwargs=settings))
    if case != "no_record":
        write_json(run.pretraining_file, {"seconds": 1.0})
    if case == "imported_teacher":
        teacher.start(preset("cifar10", objective="imported"))
    write_pseudo_labels(PseudoLabels(torch.arange(4), {2: torch.arange(4) % 2}, {"data": "cifar10"}), labels)
    with pytest.raises(UsageError) as error:
        additional_data(run, "cifar10")
    assert (error.value.parameter, error.value.allowed) == ("additional_data", (True, False))
    for given in (True, False):
        assert additional_data(run, "cifar10", given)[0] is given


def test_a_name_is_no_path_whatever_the_working_directory_contains(tmp_path, monkeypatch, register):
    class Own(SimCLR):
        from_files: ClassVar = {"guide": "encoder"}

    register("own", Own)
    monkeypatch.chdir(tmp_path)
    for name in ("acl_ds", "js", "runs", "prior.pt"):
        Path(name).mkdir()
    cases = [
        ("gsa_rsl", {"base": "acl_ds", "divergence": "js"}, False),
        ("gsa_rsl", {"base": "acl_ds", "base_kwargs": {"anything": "js"}}, False),
        ("own", {"anything": "runs"}, False),
        ("own", {"anything": "prior.pt"}, True),
        ("own", {"anything": "./runs"}, True),
        ("own", {"guide": "runs"}, True),
        ("gsa_rsl", {"base": "own", "base_kwargs": {"guide": "runs"}}, True),
        ("no_longer_registered", {"anything": "runs"}, True),
    ]
    for number, (objective, settings, unknown) in enumerate(cases):
        run = RunDir(tmp_path / f"run{number}")
        run.start(preset("cifar10").replace(objective=objective, objective_kwargs=settings))
        write_json(run.pretraining_file, {"seconds": 1.0})
        assert bool(sources(run).unknown) == unknown, settings
        assert any("author's machine" in why for why in whole_run._elsewhere(run)) == unknown, settings


def test_additional_data_of_teachers_and_pseudo_labels(tmp_path):
    run, teacher, labels = RunDir(tmp_path / "run"), RunDir(tmp_path / "teacher"), tmp_path / "labels.npz"
    for name in ("cifar10", "stl10"):
        shutil.rmtree(teacher.path, ignore_errors=True)
        shutil.rmtree(run.path, ignore_errors=True)
        teacher.start(preset(name, objective="simclr"))
        write_json(teacher.pretraining_file, {"seconds": 1.0})
        run.start(preset("cifar10", objective="deacl", objective_kwargs={"teacher": str(teacher.path)}))
        write_json(run.pretraining_file, {"seconds": 1.0})
        assert additional_data(run, "cifar10")[0] is (name == "stl10")
        shutil.rmtree(run.path)
        of_base = {"base": "deacl", "base_kwargs": {"teacher": str(teacher.path)}}
        run.start(preset("cifar10", objective="gsa_rsl", objective_kwargs=of_base))
        write_json(run.pretraining_file, {"seconds": 1.0})
        assert additional_data(run, "cifar10")[0] is (name == "stl10")
        shutil.rmtree(run.path)
        made = PseudoLabels(torch.arange(4), {2: torch.arange(4) % 2}, {"seen": ["cifar10", name]})
        write_pseudo_labels(made, labels)
        run.start(preset("cifar10", objective="advcl", objective_kwargs={"pseudo_labels": str(labels)}))
        write_json(run.pretraining_file, {"seconds": 1.0})
        assert additional_data(run, "cifar10")[0] is (name == "stl10")


@pytest.mark.e2e
def test_a_teacher_that_is_another_run_now_is_not_taken_for_it(tmp_path, few, monkeypatch):
    """Its path may be relative, and lead to another run from another folder, or its folder may have been replaced."""
    config = preset("digits", **TINY | {"objective": "simclr"})
    for place, options in (("here", {}), ("there", {"seed": 5})):
        (tmp_path / place).mkdir()
        pretrain(config.replace(**options), tmp_path / place / "teacher")
    monkeypatch.chdir(tmp_path / "here")
    student = config.replace(objective="deacl", objective_kwargs={"teacher": "teacher"})
    run = pretrain(student, tmp_path / "student")
    assert additional_data(run, "digits") == (False, "pretrained and probed on digits alone")
    assert whole_run._elsewhere(run) == []
    monkeypatch.chdir(tmp_path / "there")
    assert sources(run).unknown == ["teacher teacher, where another run is now"]
    assert "where another run is now" in " ".join(whole_run._elsewhere(run))
    with pytest.raises(UsageError, match="`teacher` teacher has another encoder now"):
        pretrain(student, tmp_path / "student")
    monkeypatch.chdir(tmp_path)  # where there is none: a finished run needs none
    assert pretrain(student, tmp_path / "student").encoder_file.is_file()


@pytest.mark.e2e
def test_a_run_is_not_written_over_the_one_that_it_starts_from(tmp_path, few, register):
    config = preset("digits", **TINY | {"objective": "simclr", "keep_every": 1})
    first = pretrain(config, tmp_path / "run")
    weights = first.encoder_file.read_bytes()
    snapshot = first.snapshots()[0].path
    for options in (
        {"init": first.path},
        {"objective": "deacl", "objective_kwargs": {"teacher": str(first.path)}},
        {"objective": "deacl", "objective_kwargs": {"teacher": str(snapshot)}},
        {"objective": "gsa_rsl", "objective_kwargs": {"base": "deacl", "base_kwargs": {"teacher": str(first.path)}}},
    ):
        with pytest.raises(UsageError, match="is or holds the run that") as error:
            pretrain(config.replace(**options), tmp_path / "run", overwrite=True)
        assert error.value.parameter == "out"
        assert first.encoder_file.read_bytes() == weights

    class Taught(SimCLR):
        """Takes an encoder by another name."""

        from_files: ClassVar[dict[str, str]] = {"mentor": "encoder"}

        def __init__(self, *, mentor=None, **settings):
            super().__init__(**settings)

    register("taught", Taught)
    mentored = {"objective": "taught", "objective_kwargs": {"mentor": str(first.path)}}
    with pytest.raises(UsageError, match="is or holds the run that `mentor` takes"):
        pretrain(config.replace(**mentored), tmp_path / "run", overwrite=True)
    assert list(read_json(pretrain(config.replace(**mentored), tmp_path / "c").pretraining_file)["teachers"]) == [
        "mentor"
    ]
    # a run of an earlier version may be its own teacher: no recursion
    first.record_config(config.replace(objective="deacl", objective_kwargs={"teacher": str(first.path)}))
    assert sources(first).unknown == ["run run, which was replaced by a student of its own"]
    taught = pretrain(config.replace(objective="deacl", objective_kwargs={"teacher": str(snapshot)}), tmp_path / "b")
    assert "the teacher is an encoder that its run kept on the way" in whole_run._elsewhere(taught)


def test_additional_data_stands_in_the_files_with_its_reason(run):
    folder, _ = run
    write_json(folder.pretraining_file, {"transferred_from": "stl10"})
    file = export(folder, name="Mine", **PAPER)
    info = json.loads(file.read_text())
    assert (info["additional_data"], info["footnote"]) == (True, "additional data: pretrained on stl10")
    form = (folder.robustbench_folder / "submission" / "Mine" / "NEW_MODEL.md").read_text()
    assert "- **Additional data**: true (pretrained on stl10)" in form.splitlines()


@pytest.mark.e2e
def test_additional_data_on_the_command_line(run, capsys):
    folder, _ = run
    folder.pretraining_file.unlink()
    assert main(["export", str(folder.path)]) == 2
    assert "--additional-data: no file records" in capsys.readouterr().err
    assert not folder.robustbench_folder.exists()
    assert main(["export", str(folder.path), "--additional-data", "false"]) == 0
    assert main(["export", str(folder.path), "--additional-data", "true", "--overwrite"]) == 0
    info = next(folder.robustbench_folder.rglob("model_info/*/*/*.json"))
    assert json.loads(info.read_text())["additional_data"] is True


@pytest.mark.e2e
def test_what_is_handed_out_is_contiguous(run):
    folder, model = run
    encoder = Encoder(spec((3, 32, 32)), projector="identity")
    write_encoder(folder, encoder.spec, encoder.backbone.state_dict())
    export(folder, name="Mine")
    description = folder.robustbench_folder / "models" / "cifar10" / "Linf" / "Mine.json"
    for each in (load_classifier(folder.path), load_encoder(folder.path), load_exported(description)):
        assert all(value.is_contiguous() for value in each.state_dict().values())
    assert not all(value.is_contiguous() for value in model.state_dict().values())


@pytest.mark.e2e
@pytest.mark.parametrize("backbone", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_every_attack_of_torchattacks_takes_it(run, backbone):
    import torchattacks

    kwargs = {"resnet10t": None, "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]},
              "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 24}}[backbone]  # fmt: skip
    folder, _ = run
    model = Classifier(spec((3, 32, 32), backbone, kwargs, "abcdefghij"))
    nn.init.normal_(model.head.weight)
    write_model(folder.classifier_file, model.spec, model.state_dict())
    model = load_classifier(folder.path)
    x = torch.rand(2, 3, 32, 32)
    y = model(x).argmax(1)
    few = {
        "steps": 2,
        "n_queries": 5,
        "num_iter_set": 2,
        "nb_iter": 2,
        "N": 2,
        "m": 2,
        "n_restarts": 1,
        "n_classes": 10,
    }
    few |= {"nb_sample": 4, "eot_iter": 1}
    by_view = ("APGD", "CW", "PGDL2", "PGDRSL2")  # whose gradients are taken by view
    for name in attack_names() if backbone == "resnet10t" else by_view:
        attack = getattr(torchattacks, name, None) or ATTACKS.get(name)
        known = set(inspect.signature(attack.__init__).parameters)
        adversarial = attack(model, **{k: v for k, v in few.items() if k in known})(x, y)
        assert adversarial.shape == x.shape, name


@pytest.mark.e2e
def test_a_chain_of_transfers_keeps_what_the_encoder_was_pretrained_on(tmp_path):
    runs = [RunDir(tmp_path / name) for name in ("first", "second", "third")]
    runs[0].start(preset("digits"))
    write_json(runs[0].pretraining_file, {"seconds": 1.0})
    encoder = Encoder(spec(), projector="identity")
    write_encoder(runs[0], encoder.spec, encoder.backbone.state_dict())
    for source, run, data in ((runs[0], runs[1], "digits_5_9"), (runs[1], runs[2], "digits_5_9")):
        transfer(source, run, transferred(source.read_config(), data))
    assert sources(runs[2]).seen == {"digits": "pretrained on digits"}
    assert additional_data(runs[2], "digits_5_9") == (True, "pretrained on digits")
    assert additional_data(runs[2], "digits")[0] is False


@pytest.mark.e2e
def test_pseudo_labels_record_what_their_encoder_saw(teacher_run, tmp_path):
    out = tmp_path / "labels.npz"
    assert main(["pseudo-labels", str(teacher_run), "--out", str(out), "--clusters", "[2]"]) == 0
    assert read_pseudo_labels(out).provenance["seen"] == ["digits"]
