"""All stages have one policy for results that exist: resume or return, refuse, or overwrite."""

import re

import pytest
import torch

from acl_plugin import pipeline
from acl_plugin.cli.main import main
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import run_folder
from acl_plugin.probing.protocols import probe
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime.files import read_json, write_json
from acl_plugin.training.pretrain import pretrain

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(finished_run, tmp_path):
    import shutil

    return RunDir(shutil.copytree(finished_run, tmp_path / "run"))


def files(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


def test_same_settings_return_the_record_and_others_are_refused(folder, tmp_path):
    file = tmp_path / "evaluation_key.json"
    assert earlier_record(file, {"seed": 1}, False) is None
    write_json(file, read_json(folder.evaluation_key_file) | {"seed": 1})
    assert earlier_record(file, {"seed": 1}, False)["seed"] == 1
    assert earlier_record(file, {"seed": 2}, True) is None
    message = rf"{tmp_path} already contains a suite with different settings \(seed 2, there 1\). Pass `overwrite`"
    with pytest.raises(UsageError, match=message) as error:
        earlier_record(file, {"seed": 2}, False, "a suite")
    assert (error.value.parameter, error.value.given, error.value.allowed) == ("overwrite", False, (True,))


STAGES = {
    "pretrain": (lambda run, config, **more: pretrain(config, run.path, **more), {"lr": 0.5}),
    "probe": (probe, {"probe_lr": 0.5}),
    "evaluate": (run_folder.evaluate, {"eps": 0.05}),
    "suite": (
        lambda run, config, **more: run_folder.evaluate_suite(run, config, attacks=["FGSM"], **more),
        {"eps": 0.05},
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_returns_what_is_there_or_refuses(name, folder):
    stage, other = STAGES[name]
    config = folder.read_config()
    if name == "suite":
        stage(folder, config)
    before = files(folder)
    stage(folder, config)
    same = files(folder)
    assert same.keys() == before.keys()
    assert {path.name for path in same if same[path] != before[path]} <= {"suite.json"}  # its seconds
    with pytest.raises(UsageError, match=r"with different settings \(.*\). Pass `overwrite`"):
        stage(folder, config.replace(**other))
    assert files(folder) == same


def test_overwriting_a_probe_replaces_the_classifier(folder):
    config, before = folder.read_config(), files(folder)
    probe(folder, config.replace(probe_lr=0.5), overwrite=True)
    after = files(folder)
    assert {path.name for path in after if after[path] != before[path]} == {"classifier.pt", "probe.json"}
    assert read_json(folder.probe_file)["probe_lr"] == 0.5


def test_overwriting_a_run_leaves_nothing_of_it_and_all_else(folder, tiny_config, capsys):
    (folder.path / "notes.txt").write_text("mine")
    config = tiny_config.replace(lr=0.5)
    pretrain(config, folder.path, overwrite=True)
    fresh = pretrain(config, folder.path.parent / "fresh")
    names = {path.relative_to(folder.path) for path in files(folder) if "tensorboard" not in path.parts}
    expected = {path.relative_to(fresh.path) for path in files(fresh) if "tensorboard" not in path.parts}
    assert {str(name) for name in names - expected} == {"notes.txt"}
    assert expected <= names
    assert folder.encoder_file.read_bytes() == fresh.encoder_file.read_bytes()
    assert folder.read_config() == config


def test_nothing_is_removed_before_all_checks_have_passed(folder, tiny_config):
    before = files(folder)
    for options in ({"batch_size": 4000}, {"attack": "Square"}, {"backbone": "no_such_network"}):
        with pytest.raises(UsageError):
            pretrain(tiny_config.replace(**options), folder.path, overwrite=True)
    with pytest.raises(UsageError, match="is not empty and not a run folder"):
        pretrain(tiny_config, folder.path.parent, overwrite=True)
    assert files(folder) == before


def test_a_complete_run_follows_where_the_data_are(folder):
    config = folder.read_config()
    pretrain(config.replace(eval_batch_size=7), folder.path)
    assert folder.read_config().evaluation.eval_batch_size == 7


def test_the_commands_have_the_flag(folder, capsys):
    small = ["--probe-epochs", "1"]
    assert main(["probe", str(folder.path), *small]) == 2
    assert "already contains a probe with different settings (probe_epochs 1, there 2)" in capsys.readouterr().err
    assert main(["probe", str(folder.path), *small, "--overwrite"]) == 0
    assert read_json(folder.probe_file)["probe_epochs"] == 1


def test_stages_take_their_settings_from_the_folder(folder, few):
    """With neither configuration nor device, a stage is that of the whole job."""
    before = folder.classifier_file.read_bytes()
    probe(folder, overwrite=True)
    assert folder.classifier_file.read_bytes() == before
    assert run_folder.evaluate(folder, device=torch.device("cpu"))["n"] == 24
    assert pipeline.run(folder.read_config(), folder.path)["n"] == 24


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "--out", "RUN", "--lr", "0.5"],
        ["probe", "RUN", "--probe-lr", "0.5"],
        ["evaluate", "RUN", "--eps", "0.05"],
        ["audit", "RUN", "--limit", "20"],
        ["transfer", "RUN", "--out", "RUN", "--data", "digits", "--probe-lr", "0.5"],
    ],
    ids=lambda command: command[0],
)
def test_a_refused_command_names_only_flags_that_it_has(command, folder, capsys):
    arguments = [str(folder.path) if each == "RUN" else each for each in command]
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert "with different settings" in line
    with pytest.raises(SystemExit):
        main([command[0], "--help"])
    shown = capsys.readouterr().out
    named = line.partition(")")[2]
    assert named.strip()
    for flag in re.findall(r"--[a-z][a-z-]*", named):
        assert flag in shown


def test_a_complete_run_in_a_folder_that_may_only_be_read(folder, monkeypatch):
    from acl_plugin.runs import folder as module

    monkeypatch.setattr(module, "write_atomic", lambda *_: pytest.fail("written"))
    assert pretrain(folder.read_config(), folder.path).encoder_file.is_file()
