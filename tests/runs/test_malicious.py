"""Files that try to execute code or to write elsewhere: each is refused, told in a line, and does nothing."""

import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from acl_plugin import registry
from acl_plugin.cli.main import main
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import torch_bytes
from conftest import FINISHED, OPTIONS


class Evil:
    """Unpickled, it makes a folder where it is."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


EVIL_YAML = "!!python/object/apply:os.mkdir ['executed']"


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    """The working directory has two folders of the test's own above it, where what escapes is found."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")


@pytest.fixture
def run(finished_run):
    """A copy of a finished run, in the working directory."""
    shutil.copytree(finished_run, "run")
    return RunDir("run")


def refused(capsys, *arguments, told=""):
    """The command ends with a line and executes nothing; files that are not there before are not there after."""
    root = Path("../..").resolve()
    before = set(root.rglob("*"))
    assert main([*map(str, arguments)]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("acl-plugin: ")
    assert told in lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)
    assert not Path("executed").exists()
    assert {path for path in root.rglob("*") if path.name != ".lock"} <= before


def test_the_evil_is_evil():
    pickle.loads(pickle.dumps(Evil()))
    assert Path("executed").is_dir()
    Path("executed").rmdir()
    yaml.unsafe_load(EVIL_YAML)
    assert Path("executed").is_dir()


@pytest.mark.e2e
@pytest.mark.parametrize("how", [pickle.dumps, torch_bytes], ids=["pickle", "torch"])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("encoder", ["probe", "run"]),
        ("projector", ["probe", "run"]),
        ("encoder", ["audit", "run", "--overwrite"]),
        ("encoder", ["transfer", "run", "--data", "digits", "--out", "other"]),
        ("encoder", ["pseudo-labels", "run", "--out", "labels.npz"]),
        ("classifier", ["evaluate", "run"]),
        ("classifier", ["export", "run"]),
        ("classifier", ["report", "run"]),
        ("encoder", ["pretrain", "--out", "x", *OPTIONS, "--objective", "deacl", "--objective-kwargs.teacher", "run"]),
    ],
    ids=lambda v: v if isinstance(v, str) else v[0],
)
def test_weights_in_a_run_folder(run, capsys, file, command, how):
    path = getattr(run, f"{file}_file")
    path.write_bytes(how({"spec": Evil(), "projector": Evil(), "weights": {}}))
    refused(capsys, *command, told=f"{path} is damaged")


@pytest.mark.e2e
@pytest.mark.parametrize("how", [pickle.dumps, torch_bytes], ids=["pickle", "torch"])
def test_a_checkpoint_to_resume_from(run, capsys, how):
    whole = run.encoder_file.read_bytes()
    run.encoder_file.unlink()
    for path in (run.checkpoint_file, run.earlier_checkpoint_file):
        path.write_bytes(how({"means": Evil(), "state_dict": Evil()}))
    assert main(["pretrain", "--out", "run", *FINISHED]) == 0  # from the beginning
    assert capsys.readouterr().err.count("is damaged") == 2
    assert not Path("executed").exists()
    assert run.encoder_file.read_bytes() == whole


@pytest.mark.parametrize("how", [pickle.dumps, torch_bytes], ids=["pickle", "torch"])
def test_a_published_checkpoint(capsys, how):
    Path("published.pt").write_bytes(how({"state_dict": {"conv1.weight": torch.ones(1)}, "args": Evil()}))
    refused(capsys, "import", "published.pt", "--out", "x", "--data", "digits", told="published.pt")


@pytest.mark.e2e
def test_pseudo_labels(run, capsys):
    with open("labels.npz", "wb") as file:
        np.savez(file, rows=np.array([Evil()], dtype=object), labels_2=np.array([Evil()], dtype=object))
    own = ["--objective", "advcl", "--objective-kwargs.pseudo_labels", "labels.npz"]
    refused(capsys, "pretrain", "--out", "x", *OPTIONS, *own, told="labels.npz is damaged or no file of pseudo-labels")


@pytest.mark.e2e
@pytest.mark.parametrize("text", [EVIL_YAML, f"data: {EVIL_YAML}", f"objective_kwargs: {{rho: {EVIL_YAML}}}"])
@pytest.mark.parametrize(
    "command",
    [["pretrain", "--config", "run/config.yaml", "--out", "x"], *([name, "run"] for name in ("probe", "status"))],
    ids=lambda v: v[0],
)
def test_yaml(run, capsys, text, command):
    run.config_file.write_text(text)
    refused(capsys, *command)


@pytest.mark.e2e
def test_yaml_on_the_command_line(run, capsys):
    refused(capsys, "pretrain", "--out", "x", "--objective-kwargs.rho", EVIL_YAML)
    refused(capsys, "pretrain", "--out", "x", "--backbone-kwargs", f"{{stem_width: {EVIL_YAML}}}")


@pytest.mark.e2e
def test_weights_that_a_backbones_arguments_name(run, capsys):
    """timm would unpickle them."""
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    given = ["--backbone-kwargs.checkpoint_path", "evil.pth"]
    told = "--backbone-kwargs.checkpoint_path is not taken"
    refused(capsys, "pretrain", "--out", "x", *given, told=told)
    config = yaml.safe_load(run.config_file.read_text())
    config["encoder"]["backbone_kwargs"]["checkpoint_path"] = "evil.pth"
    run.config_file.write_text(yaml.safe_dump(config))
    run.encoder_file.unlink()
    refused(capsys, "run", "--config", "run/config.yaml", "--out", "run", told=told)
    content = torch.load(run.classifier_file, weights_only=True)
    content["spec"]["kwargs"]["checkpoint_path"] = "evil.pth"
    torch.save(content, run.classifier_file)
    refused(capsys, "export", "run", told=told)


@pytest.mark.e2e
def test_records_of_an_evaluation(run, capsys, few):
    first = sorted(run.adversarial_folder.iterdir())[0]
    run.evaluation_file.unlink()
    with first.open("wb") as file:
        np.savez(file, positions=np.array([Evil()], dtype=object), images=np.array([Evil()], dtype=object))
    refused(capsys, "evaluate", "run", told=f"{first} is missing or damaged")
    chunk = next(run.chunks_folder.iterdir())
    chunk.write_text('{"start": 0, "predictions": [], "broken_by": ["../../x"], "done": "os.mkdir", "flags": []}')
    refused(capsys, "evaluate", "run", told=f"{chunk} is damaged (done is 'os.mkdir', not int)")


@pytest.mark.e2e
@pytest.mark.parametrize(("field", "value"), [("dataset", "../../escaped"), ("threat_model", "../../../escaped")])
def test_an_evaluation_does_not_lead_out_of_the_folder(run, capsys, field, value):
    found = json.loads(run.evaluation_file.read_text())
    run.evaluation_file.write_text(json.dumps(found | {field: value}))
    refused(capsys, "export", "run", told=f"evaluation.json is damaged ({field} is {value!r}, not one of")


@pytest.mark.e2e
def test_a_model_name_does_not_lead_out_of_the_folder(run, capsys):
    refused(
        capsys, "export", "run", "--name", "../../escaped", told="--name '../../escaped': allowed are up to 100 letters"
    )


@pytest.mark.e2e
def test_the_index_of_exported_models(run):
    from acl_plugin.errors import UsageError
    from acl_plugin.leaderboard.registration import load_exported

    described = run.robustbench_folder / "models" / "digits" / "Linf" / "gsa_rsl_resnet10t.json"
    description = json.loads(described.read_text())
    evil = pickle.dumps(Evil())
    Path("evil.pt").write_bytes(evil)
    digest = hashlib.sha256(evil).hexdigest()
    described.write_text(json.dumps(description | {"weights": "../../evil.pt", "sha256": digest}))
    with pytest.raises(UsageError, match="lies outside of its folder"):
        load_exported(described)
    (described.parent / description["weights"]).write_bytes(evil)
    described.write_text(json.dumps(description | {"sha256": digest}))
    with pytest.raises(UsageError, match="is damaged"):
        load_exported(described)
    assert not Path("executed").exists()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "name", ["../../escaped", "<script>alert(1)</script>", "os.mkdir('executed')", "a b", "/tmp/x"]
)
def test_names_of_entry_points(tmp_path, monkeypatch, capsys, name):
    info = tmp_path / "evil-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.OBJECTIVES.group}]\n{name} = acl_plugin.objectives.simclr:SimCLR\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert name not in registry.available()
    assert main(["list", "objectives"]) == 0
    assert name not in capsys.readouterr().out
    refused(capsys, "run", "--out", "x", "--objective", name, told="has a name that is not allowed")
    refused(capsys, "run", "--out", "x", "--compare", name, told="has a name that is not allowed")
    with pytest.raises(ValueError, match="allowed are letters, digits and _"):
        registry.register(name)


def test_a_data_set(fabricated, capsys):
    """torchvision unpickles CIFAR's files, and compares their checksums first."""
    (fabricated / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    given = ["--data", "cifar10", "--data-dir", fabricated]
    refused(capsys, "pretrain", "--out", "x", *given, told="data_batch_1 is damaged (its MD5 is not")
