"""What a reviewer gets is enough to rebuild the model and to read the claim."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_export import EVALUATION, PAPER
from torch import nn

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.evaluation.storage import write_verdicts
from acl_plugin.evaluation.verdicts import Verdict
from acl_plugin.leaderboard import repeat, submission, weights, whole_run
from acl_plugin.leaderboard.export import export
from acl_plugin.leaderboard.registration import load_exported
from acl_plugin.models.encoder import Classifier
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import weights_hash, write_model
from acl_plugin.runtime.files import write_json
from conftest import FINISHED, OPTIONS, ROOT, spec

EFFICIENT_VIT = {"widths": [4, 4, 8, 8, 8], "depths": [1, 1, 1, 1, 1], "head_dim": 4, "head_widths": [8, 8]}
COAT = {"embed_dims": [8] * 4, "serial_depths": [1] * 4, "parallel_depth": 1, "num_heads": 8, "img_size": 32}
BACKBONES = [
    ("resnet10t", {"stem_width": 4, "channels": [4, 8, 8, 8]}, "cifar"),
    ("resnet18", {"channels": [8, 8, 8, 8]}, "cifar_padding_2"),
    ("resnet18", {"channels": [8, 8, 8, 8]}, "cifar_stride_2"),
    ("resnet18", {"channels": [8, 8, 8, 8]}, "native"),
    ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24}, "cifar"),
    ("mobilenetv3_small_050", {}, "cifar"),
    ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}, "cifar"),
    ("mixer_s16_224", {"mlp_ratio": [0.5, 0.125]}, "cifar"),
    ("wrn34_10", {"depth": 10, "width": 1}, "cifar"),
    ("efficientvit_b0", EFFICIENT_VIT, "cifar"),  # it has a `context_module`
    ("coat_tiny", COAT, "native"),  # its layers share weights
]


def exported(tmp_path, backbone="resnet10t", kwargs=None, stem="cifar", **options):
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("cifar10"))
    write_json(folder.pretraining_file, {"seconds": 1.0})
    model = Classifier(spec((3, 32, 32), backbone, kwargs, tuple("abcdefghij"), stem)).eval()
    nn.init.normal_(model.head.weight)
    write_model(folder.classifier_file, model.spec, model.state_dict())
    found = {**EVALUATION, "weights_sha256": weights_hash(model), **options.pop("evaluation", {})}
    write_json(folder.evaluation_file, found)
    write_verdicts(folder.verdicts_file, [Verdict(i, 0, 0 if i % 5 else 1, None) for i in range(found["n"])])
    export(folder, **{"name": "Author2026Paper", **options})
    return folder, model


REVIEWER = """
import sys
sys.modules["acl_plugin"] = None  # a reviewer does not have it
import torch, timm
found = []
for number, folder in enumerate(sys.argv[3:]):
    sys.path.insert(0, folder)
    __import__(f"Author2026Paper{number}")
    model = timm.create_model(f"author2026paper{number}_cifar10_linf")
    assert not any(m.training for m in model.modules())
    found.append(model(torch.load(sys.argv[1])).detach())
torch.save(found, sys.argv[2])
"""


@pytest.mark.e2e
def test_the_stubs_rebuild_the_models_without_this_package(tmp_path):
    made = [
        exported(tmp_path / str(number), *backbone, name=f"Author2026Paper{number}")
        for number, backbone in enumerate(BACKBONES)
    ]
    x = torch.rand(4, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    folders = [
        str(folder.robustbench_folder / "submission" / f"Author2026Paper{number}")
        for number, (folder, _) in enumerate(made)
    ]
    arguments = [str(tmp_path / "x.pt"), str(tmp_path / "out.pt"), *folders]
    command = [sys.executable, "-W", "ignore", "-c", REVIEWER, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for found, (_, model), backbone in zip(torch.load(tmp_path / "out.pt"), made, BACKBONES, strict=True):
        torch.testing.assert_close(
            found, model(x).detach(), atol=1e-5, rtol=1e-5, msg=lambda text, backbone=backbone: f"{backbone}: {text}"
        )


@pytest.mark.e2e
def test_the_folder_is_complete_and_agrees_with_itself(tmp_path):
    folder, model = exported(tmp_path, **PAPER)
    files = {p.name: p for p in (folder.robustbench_folder / "submission" / "Author2026Paper").iterdir()}
    assert set(files) == {
        "Author2026Paper.json", "Author2026Paper.safetensors", "Author2026Paper.safetensors.sha256", "export.json",
        "config.yaml", "Author2026Paper.pt",
        "Author2026Paper.py", "model_zoo.py", "NEW_MODEL.md", "repeat.sh", "evaluation.json", "evaluation.jsonl",
    }  # fmt: skip
    weights = load_file(files["Author2026Paper.safetensors"])
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    digest = hashlib.sha256(files["Author2026Paper.safetensors"].read_bytes()).hexdigest()
    assert files["Author2026Paper.safetensors.sha256"].read_text().split()[0] == digest
    assert digest in files["Author2026Paper.py"].read_text()
    text = files["NEW_MODEL.md"].read_text()
    assert digest in text
    assert text.splitlines()[0] == "# [New Model] Author2026Paper"
    for field, value in {
        "Paper Title": "A Paper", "Paper URL": PAPER["paper_url"], "Paper authors": "A. Author", "Dataset": "cifar10",
        "Threat Model": "Linf", "eps": "8/255", "Clean accuracy": "78.22", "Robust accuracy": "39.17",
        "Additional data": "false (pretrained and probed on cifar10 alone)",
        "Architecture": "ResNet-10t (stem_width 4, width 4-8)",
    }.items():  # fmt: skip
        assert f"- **{field}**: {value}" in text.splitlines()
    assert "Draft" not in text
    assert "Not for submission" not in text
    pickled = torch.load(files["Author2026Paper.pt"], weights_only=True)
    assert all(torch.equal(v, pickled[k]) for k, v in model.state_dict().items())
    again = load_exported(files["export.json"], 10)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert "None" not in text
    info = json.loads(files["Author2026Paper.json"].read_text())
    assert info == json.loads((folder.robustbench_folder / "model_info/cifar10/Linf/Author2026Paper.json").read_text())
    assert files["evaluation.jsonl"].read_bytes() == folder.verdicts_file.read_bytes()


@pytest.mark.e2e
@pytest.mark.parametrize("backbone", BACKBONES[-2:])
def test_robustbenchs_loader_gives_the_weights_their_names(backbone, tmp_path):
    """It cuts texts such as `module.` off the front of names that have them anywhere."""
    utils = pytest.importorskip("robustbench.utils")
    folder, model = exported(tmp_path, *backbone, **PAPER)
    described = folder.robustbench_folder / "models" / "cifar10" / "Linf" / "Author2026Paper.json"
    found = torch.load(described.with_suffix(".pt"), weights_only=True)
    for text in ("module.", "model."):
        found = utils.rm_substr_from_state_dict(found, text)
    for loaded in (found, load_exported(described).state_dict()):
        assert list(loaded) == list(model.state_dict())
        assert all(torch.equal(v, loaded[k]) for k, v in model.state_dict().items())


def test_names_with_several_of_robustbenchs_texts_are_kept():
    utils = pytest.importorskip("robustbench.utils")
    names = [
        "a",
        "module.a",
        "model.a",
        "a_module.b_model.c",
        "a_model.b_module.c",
        "module.model.module.a",
        "supermodel.a",
    ]
    own = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    written = weights.for_robustbench(own)
    assert weights.of_robustbench(written) == own
    for text in weights.CUT:
        written = dict(utils.rm_substr_from_state_dict(written, text))
    assert written == own


@pytest.mark.e2e
def test_a_draft_and_a_subset_state_so(tmp_path):
    folder, _ = exported(tmp_path, evaluation={"n": 100})
    text = (folder.robustbench_folder / "local" / "submission" / "Author2026Paper" / "NEW_MODEL.md").read_text()
    assert not (folder.robustbench_folder / "local" / "submission" / "Author2026Paper" / "model_zoo.py").exists()
    assert "> Draft: paper URL, paper title, authors missing" in text
    assert "> Not for submission: subset: 100 of 10000 test images." in text
    assert "- **Paper Title**: " in text.splitlines()  # and not the model's name
    assert "- **Robust accuracy**: 39.17 (not for the leaderboard: subset: 100 of 10000 test images)" in text
    assert "on\n  100 of 10000 test images, seed 0" in text


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("dataset", "right", "clean_acc", "expected"),
    [
        ("cifar10", 800, "80.00", ("80.00 %, passes", "80.00 %, passes")),
        ("cifar10", 700, "70.00", ("70.00 %, fails", "70.00 %, passes")),  # theirs asks for more than 70
        ("cifar10", 800, "80.05", ("80.00 %, passes", "80.00 %, passes")),
        ("cifar10", 800, "80.06", ("80.00 %, passes", "80.00 %, fails")),  # percentage points, not shares
        ("cifar10", 800, "84.00", ("80.00 %, passes", "80.00 %, fails")),
        ("cifar100", 455, "45.50", ("45.50 %, passes", "45.50 %, passes")),
    ],
)
def test_robustbenchs_own_tests(tmp_path, dataset, right, clean_acc, expected):
    """tests/test_clean_acc.py there: more than 70 or 45 % on 200 images; within 0.05 points on 10,000."""
    run = RunDir(tmp_path)
    wrong = {i for i in range(1000) if i * (1000 - right) // 1000 != (i + 1) * (1000 - right) // 1000}
    lines = [Verdict(i, 0, int(i % 1000 in wrong), None) for i in range(10_000)]
    write_verdicts(run.verdicts_file, lines)
    found = submission.acceptance(run, {"dataset": dataset}, clean_acc)
    assert tuple(line.rsplit(": ", 1)[1] for line in found) == expected
    write_verdicts(run.verdicts_file, lines[100:400])
    assert all("not known" in line for line in submission.acceptance(run, {"dataset": dataset}, clean_acc))
    run.verdicts_file.unlink()
    assert all("not known" in line for line in submission.acceptance(run, {"dataset": dataset}, clean_acc))
    assert submission.acceptance(run, {"dataset": "digits"}, clean_acc) == ["none: RobustBench has no test on digits"]


MAINTAINER = """
import sys
sys.modules["acl_plugin"] = None  # a maintainer does not have it
import pyautoattack
sys.modules["autoattack"], sys.modules["autoattack.state"] = pyautoattack, pyautoattack  # only its import counts here
pyautoattack.EvaluationState = None
import robustbench, timm, torch
assert robustbench.__file__.startswith(sys.argv[1])
from robustbench.utils import get_leaderboard_bibtex, get_leaderboard_latex, list_available_models
model = robustbench.load_model("Author2026-Paper", model_dir="models", dataset="cifar10", threat_model="Linf")
torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])
list_available_models("cifar10", "Linf")
assert "Author2026-Paper" in get_leaderboard_latex("cifar10", "Linf")
get_leaderboard_bibtex("cifar10", "Linf")
"""


def merged(folder, name, repository):
    """Do what model_zoo.py says, in a copy of RobustBench."""
    steps = (folder / "model_zoo.py").read_text()
    copies = [line.split("Copy ")[1].split(" to ") for line in steps.splitlines() if "Copy " in line]
    for file, place in copies:
        (repository / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, repository / place)
    (repository / "models/cifar10/Linf").mkdir(parents=True)
    shutil.copyfile(folder / f"{name}.pt", repository / f"models/cifar10/Linf/{name}.pt")
    zoo = repository / "robustbench/model_zoo/cifar10.py"
    lines = steps.splitlines()
    added = next(line for line in lines if line.startswith("from "))
    entry = "\n".join(lines[lines.index(f"('{name}', {{") : lines.index("}),") + 1])
    assert "OrderedDict `linf`" in steps
    text = zoo.read_text()
    start = text.index("(", text.index("\nlinf = OrderedDict(") + len("\nlinf = OrderedDict("))
    zoo.write_text(f"{added}\n{text[:start]}{entry}\n{text[start:]}")


@pytest.mark.e2e
def test_a_maintainer_merges_it(tmp_path):
    folder, model = exported(tmp_path, name="Author2026-Paper", **PAPER)
    repository = tmp_path / "repository"
    installed = Path(importlib.util.find_spec("robustbench").origin).parent
    shutil.copytree(installed, repository / "robustbench")
    merged(folder.robustbench_folder / "submission" / "Author2026-Paper", "Author2026-Paper", repository)
    x = torch.rand(4, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    arguments = [str(repository), str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    command = [sys.executable, "-W", "ignore", "-c", MAINTAINER, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment)
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.e2e
def test_a_network_that_the_stub_cannot_rebuild_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "stub", lambda *_: "class Author2026Paper:\n    pass\n")
    folder, _ = exported(tmp_path)
    files = {p.name for p in (folder.robustbench_folder / "submission" / "Author2026Paper").iterdir()}
    assert not {"Author2026Paper.py", "model_zoo.py"} & files
    text = (folder.robustbench_folder / "submission" / "Author2026Paper" / "NEW_MODEL.md").read_text()
    assert "no code in one file (AttributeError" in text


def repeated(folder, *arguments, bash=("bash", "repeat.sh")):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run([*bash, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.e2e
def test_repeat_repeats_the_evaluation_from_a_copy_of_the_folder_alone(tmp_path, capfd):
    """With AutoAttack as it is, as the script starts it in another process."""
    run = str(tmp_path / "run")
    options = ["--limit-test=3", "--probe-lr=0", "--objective=simclr", "--epochs=1"]  # most images are wrong: quick
    assert main(["run", "--out", run, *OPTIONS, *options]) == 0
    submitted = RunDir(run).robustbench_folder / "local" / "submission" / "simclr_resnet10t"
    folder = tmp_path / "copy"
    shutil.copytree(submitted, folder)
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.iterdir() if p.suffix in (".sh", ".yaml", ".md"))
    shutil.rmtree(run)
    done = repeated(folder, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the result is the same" in done.stdout
    assert repeated(folder).returncode != 0


@pytest.fixture
def submitted(finished_run, tmp_path):
    """A copy of the folder of a finished run, whose attacks were short."""
    source = finished_run / "robustbench" / "local" / "submission" / "gsa_rsl_resnet10t"
    return Path(shutil.copytree(source, tmp_path / "copy"))


@pytest.mark.e2e
def test_repeat_finds_what_differs(submitted, few, capsys):
    assert repeat.main([str(submitted)]) == 0
    assert "images with another verdict: 0 of 24" in capsys.readouterr().out
    result = json.loads((submitted / "evaluation.json").read_text())
    write_json(submitted / "evaluation.json", result | {"weights_sha256": "another"})
    info = submitted / "gsa_rsl_resnet10t.json"
    write_json(info, json.loads(info.read_text()) | {"reported": "99.99"})
    assert repeat.main([str(submitted)]) == 1
    told = capsys.readouterr().out
    assert "differs: weights_sha256 is" in told
    assert "differs: reported is" in told
    weights = submitted / "gsa_rsl_resnet10t.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert repeat.main([str(submitted)]) == 2


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"]])
def test_repeat_without_its_arguments_is_one_line(arguments, capsys):
    assert repeat.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{len(arguments)} arguments; allowed are the folder of a submission" in line


@pytest.mark.e2e
@pytest.mark.parametrize(("lost", "told"), [("batch_size", "has no batch_size"), ("n", "it has no 'n'")])
def test_repeat_of_a_result_with_gaps_is_one_line(lost, told, submitted, capsys):
    result = json.loads((submitted / "evaluation.json").read_text())
    write_json(submitted / "evaluation.json", {name: value for name, value in result.items() if name != lost})
    assert repeat.main([str(submitted)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.e2e
def test_the_whole_run_has_the_settings_of_its_later_stages(tmp_path, few):
    run = str(tmp_path / "run")
    assert main(["run", "--out", run, *FINISHED, "--epochs=1"]) == 0
    assert main(["probe", run, "--probe-epochs", "1", "--probe-lr", "0.5", "--seed", "7", "--overwrite"]) == 0
    for file in (RunDir(run).evaluation_file, RunDir(run).evaluation_key_file):
        file.unlink()
    assert main(["evaluate", run, "--eps", "0.05", "--limit-test", "9", "--seed", "3"]) == 0
    assert main(["export", run]) == 0
    folder = RunDir(run).robustbench_folder / "local" / "submission" / "gsa_rsl_resnet10t"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["probe"]["probe_epochs"], config["probe"]["probe_lr"]) == (1, 0.5)
    assert (config["threat"]["eps"], config["machine"]["seed"]) == (0.1, 0)
    lines = [line for line in (folder / "repeat.sh").read_text().splitlines() if line.startswith("acl-plugin ")]
    again = tmp_path / "again"
    again.mkdir()
    for line in lines:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(again)
            assert main(line.replace('"$here/config.yaml"', str(folder / "config.yaml")).split()[1:]) == 0
    one, other = (json.loads(r.evaluation_file.read_text()) for r in (RunDir(run), RunDir(again / "run")))
    keys = ("n", "eps", "seed", "weights_sha256", "robust_accuracy")
    assert {key: one[key] for key in keys} == {key: other[key] for key in keys}


def test_the_teacher_and_the_pseudo_labels_of_a_run_are_in_its_folder(teacher_run, labels_file, tmp_path):
    info = {"clean_acc": "1.00", "reported": "0.00"}
    run = RunDir(tmp_path / "run")
    run.start(preset("digits", objective="deacl", objective_kwargs={"teacher": str(teacher_run)}))
    write_json(run.pretraining_file, {"seconds": 1.0})
    files, text = whole_run.script(run, info, EVALUATION)
    assert yaml.safe_load(files["teacher.yaml"])["objective"]["objective"] == "simclr"
    assert yaml.safe_load(files["config.yaml"])["objective"]["objective_kwargs"] == {"teacher": "teacher"}
    assert text.index('teacher.yaml" --out teacher') < text.index('config.yaml" --out run')
    shutil.rmtree(run.path)
    run.start(preset("digits", objective="advcl", objective_kwargs={"pseudo_labels": str(labels_file)}))
    write_json(run.pretraining_file, {"seconds": 1.0})
    files, text = whole_run.script(run, info, EVALUATION)
    assert files["pseudo_labels.npz"] == labels_file.read_bytes()
    config = yaml.safe_load(files["config.yaml"])
    assert config["objective"]["objective_kwargs"] == {"pseudo_labels": "pseudo_labels.npz"}


@pytest.mark.parametrize(
    ("objective", "settings", "pretraining", "told"),
    [
        ("imported", {"file": "acl.pt", "sha256": "abc"}, {}, "the encoder was imported (file acl.pt, sha256 abc)"),
        ("simclr", {}, {"transferred_from": "stl10", "encoder_sha256": "abc"}, "transferred, of a run on stl10"),
        ("deacl", {"teacher": "/home/me/gone"}, {"seconds": 1.0}, "teacher gone is not there"),
        ("gsa_rsl", {"base": "deacl", "base_kwargs": {"teacher": str(ROOT)}}, {"seconds": 1.0}, "base_kwargs.teacher"),
    ],
)
def test_what_cannot_be_repeated_names_its_source(tmp_path, objective, settings, pretraining, told):
    run = RunDir(tmp_path / "run")
    run.start(preset("cifar10", objective=objective, objective_kwargs=settings, data_dir=tmp_path))
    write_json(run.pretraining_file, pretraining)
    files, text = whole_run.script(run, {"clean_acc": "1.00", "reported": "0.00"}, EVALUATION)
    (tmp_path / "repeat.sh").write_text(text)
    done = repeated(tmp_path, str(tmp_path), "out")
    assert done.returncode == 2
    assert told in done.stderr
    for content in (text, files["config.yaml"].decode()):
        assert str(tmp_path) not in content
        assert "/home/me" not in content
