import shutil

import pytest

from acl_plugin.cli.main import main
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.runs.folder import RunDir
from conftest import OPTIONS, TINY


def lines(run, capsys):
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    return first, {line.split()[0]: line.split(maxsplit=1)[1] for line in others}


def interrupted_after(function):
    def then_stop(*arguments):
        function(*arguments)
        raise KeyboardInterrupt

    return then_stop


@pytest.mark.e2e
def test_a_run_from_its_first_epoch_to_its_export(tmp_path, capsys, few, monkeypatch):
    from acl_plugin.training.module import Pretraining

    run = tmp_path / "run"

    def stops(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return whole(self, batch, batch_idx)

    whole = Pretraining.training_step
    monkeypatch.setattr(Pretraining, "training_step", stops)
    assert main(["run", "--out", str(run), *OPTIONS]) == 130
    first, told = lines(run, capsys)
    assert first == f"{run}: acl_ds on digits, resnet10t, seed 0"
    assert told["pretrain"] == f"1 of {TINY['epochs']} epochs"
    assert told["probe"] == told["evaluate"] == told["export"] == "not yet"

    monkeypatch.setattr(Pretraining, "training_step", whole)
    with monkeypatch.context() as patch:
        patch.setattr(ProbeCheckpoints, "often", 0.0)
        patch.setattr(ProbeCheckpoints, "save", interrupted_after(ProbeCheckpoints.save))
        assert main(["run", "--out", str(run), *OPTIONS]) == 130
    _, told = lines(run, capsys)
    assert told["pretrain"].startswith("done, ")
    assert told["probe"] == "begun: SLF"

    original = FolderStates.store

    def stop(states, step):
        original(states, step)
        if step.chunk.done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderStates, "store", stop)
    assert main(["run", "--out", str(run), *OPTIONS]) == 130
    _, told = lines(run, capsys)
    assert told["probe"].startswith("slf, train accuracy ")
    assert told["evaluate"] == "3 of 4 attacks"

    monkeypatch.setattr(FolderStates, "store", original)
    assert main(["run", "--out", str(run), *OPTIONS]) == 0
    _, told = lines(run, capsys)
    assert told["evaluate"].endswith("% of 12 images")
    assert told["export"] == "acl_ds_resnet10t"
    assert told["suite"] == told["audit"] == told["corruptions"] == "not yet"

    (run / ".lock").write_text("123")
    assert lines(run, capsys)[0].endswith("process 123 works in it, or was killed")
    RunDir(run).evaluation_file.write_text("{")
    assert main(["status", str(run)]) == 2
    assert "evaluation.json is damaged" in capsys.readouterr().err


@pytest.mark.e2e
def test_results_of_an_earlier_classifier_are_marked(finished_run, tmp_path, capsys):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    named = run.evaluation("again")
    named.path.mkdir(parents=True)
    shutil.copyfile(run.suite_file, named.suite_file)
    assert "earlier classifier" not in str(lines(run.path, capsys))
    assert main(["probe", str(run.path), "--probe-lr", "7", "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["status", str(run.path)]) == 0
    parts = [line.split("of an earlier classifier: ") for line in capsys.readouterr().out.splitlines()]
    marked = [first.split() for first, *others in parts if others]
    assert marked == [["evaluate"], ["suite"], ["evaluate", "again", "suite"]]


@pytest.mark.e2e
def test_a_folder_with_results_of_another_model(finished_run, tmp_path, capsys):
    run, own = RunDir(finished_run), RunDir(tmp_path / "own")
    own.path.mkdir()
    shutil.copyfile(run.evaluation_key_file, own.evaluation_key_file)
    first, told = lines(own.path, capsys)
    assert first == f"{own.path}: evaluation of a model that is no run"
    assert told["evaluate"].startswith("0 of ")
    shutil.copyfile(run.suite_file, own.suite_file)
    _, told = lines(own.path, capsys)
    assert "2 attacks, worst case" in told["suite"]
    assert set(told) == {"evaluate", "suite", "corruptions", "embedding"}


@pytest.mark.parametrize("arguments", [["nowhere"], []])
def test_mistakes(arguments, capsys):
    assert main(["status", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.e2e
def test_quiet_shows_results_alone(tmp_path, capsys):
    command = ["pretrain", "--out", str(tmp_path / "run"), *OPTIONS]
    assert main([*command, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "pretrain:" not in shown.err
    assert shown.out.startswith("encoder: ")
    assert main(["probe", str(tmp_path / "run")]) == 0
    assert "SLF:" in capsys.readouterr().err
