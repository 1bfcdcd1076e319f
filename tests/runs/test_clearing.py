import os
import shutil

import pytest

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked

OTHERS = ("notes.txt", "report.txt", "checkpoints/precious.ckpt", "checkpoints/epochs/mine", "tensorboard/mine",
          "adversarial/mine.npz", "evaluation_chunks/mine.json", "figures/mine.png")  # fmt: skip


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.e2e
def test_files_of_others_stay_and_those_of_the_run_go(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    assert {"checkpoints", "tensorboard", "adversarial"} <= {path.name for path in run.path.iterdir()}
    for name in OTHERS:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("mine")
    before = files(run.path)
    run.clear()
    assert files(run.path) - {".lock"} == set(OTHERS)
    assert before > set(OTHERS)


def test_a_new_evaluation_leaves_files_of_others(tmp_path):
    for name in ("adversarial/mine.npz", "evaluation_chunks/mine.json", "adversarial/000000-square.npz",
                 "adversarial/1000000-square.npz", "evaluation_chunks/1000000.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert not FolderStates(RunDir(tmp_path)).begin({}, overwrite=True)
    assert files(tmp_path) == {"adversarial/mine.npz", "evaluation_chunks/mine.json", "evaluation_key.json"}


def test_only_unfinished_files_of_processes_that_ended_are_swept(tmp_path):
    others = {".syncthing.big.bin.tmp", "sub/.thesis.tmp", ".a.tmp/notes.txt", f".evaluation.json.{os.getpid()}.tmp"}
    ended = {".evaluation.json.999999999.tmp", "sub/.encoder.pt.99999999999999.tmp", "sub/.a.9999999999.tmp"}
    for name in others | ended:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.999999999.tmp").mkdir()
    with locked(tmp_path):
        kept = files(tmp_path) - {".lock"}
    if os.name != "nt":  # where none is
        assert kept == others | {"sub/.encoder.pt.99999999999999.tmp"}  # too long for the number of a process


@pytest.mark.e2e
def test_a_cleared_run_leaves_no_folder(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    run.clear()
    assert {path.name for path in run.path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("text", ["lr: 5\n", "hydra:\n  run: here\n", "a: [", "- 1\n", ""])
@pytest.mark.parametrize("command", ["pretrain", "run"])
def test_a_folder_with_the_configuration_of_something_else_is_not_replaced(text, command, tmp_path, capsys):
    for name in ("config.yaml", "evaluation.json", "checkpoints/precious.ckpt"):
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text(text)
    before = files(tmp_path)
    with pytest.raises(UsageError):
        RunDir(tmp_path / "theirs").check_config(preset("digits"), overwrite=True)
    assert main([command, "--data", "digits", "--out", str(tmp_path / "theirs"), "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml" in line
    assert files(tmp_path) == before


def test_a_run_that_was_killed_in_its_first_moment_is_replaced(tmp_path):
    run = RunDir(tmp_path)
    run.record_config(preset("digits"))
    run.start(preset("digits", epochs=1), overwrite=True)
    assert run.read_config().training.epochs == 1
