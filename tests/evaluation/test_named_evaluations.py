"""Several evaluations of one run, by name."""

import json
import shutil

import pytest
from processes import ended, started

from acl_plugin.cli.main import main
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.registry import SUITES
from acl_plugin.runs.folder import RunDir


@pytest.fixture
def run(finished_run, tmp_path):
    return RunDir(shutil.copytree(finished_run, tmp_path / "run"))


def command(run, *options):
    return main(["evaluate", str(run.path), "--limit-test=12", *options])


@pytest.mark.e2e
def test_evaluations_of_other_settings_stand_side_by_side(run, few, capsys):
    before = run.evaluation_file.read_bytes()
    assert command(run, "--eps=0.05") == 2
    assert "a --name to keep both" in capsys.readouterr().err
    assert command(run, "--eps=0.05", "--name=half", "--per-class") == 0
    assert command(run, "--norm=L2", "--seed=3", "--name=l2") == 0
    assert command(run, "--suite=standard", "--attacks=[FGSM]", "--eps=0.05", "--name=half") == 0
    assert run.evaluation_file.read_bytes() == before
    half, l2 = (json.loads(run.evaluation(name).evaluation_file.read_text()) for name in ("half", "l2"))
    assert (half["eps"], half["threat_model"], l2["threat_model"], l2["seed"]) == (0.05, "Linf", "L2", 3)
    assert command(run, "--eps=0.02", "--name=half") == 2  # none replaces another
    assert command(run, "--eps=0.05", "--name=half") == 0
    assert json.loads(run.evaluation("half").evaluation_file.read_text()) == half
    assert [each.path.name for each in run.evaluations()] == ["half", "l2"]

    capsys.readouterr()
    assert main(["status", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "evaluate half" in shown
    assert "evaluate l2" in shown
    assert main(["report", str(run.path)]) == 0
    page = run.report_file.read_text()
    for text in ("Evaluation half", "Evaluation l2", "Linf eps 0.05", "L2 eps 0.25", "seed 3"):
        assert text in page


@pytest.mark.e2e
def test_several_processes_and_interruptions(run, few):
    config = run.read_config().replace(limit_test=12, eps=0.5, devices=2, eval_batch_size=6)  # soon done
    given = ["--limit-test=12", "--eps=0.5", "--devices=2", "--eval-batch-size=6", "--name=shared"]
    assert ended(started(["evaluate", run.path, *given], few=True)) == 0
    found = evaluate(run, config, name="shared")
    alone = evaluate(run, config.replace(devices=1), name="alone")
    assert found["clean_accuracy"] == alone["clean_accuracy"]
    assert found["n"] == alone["n"] == 12
    place = run.evaluation("shared")
    place.evaluation_file.unlink()
    again = evaluate(run, config, name="shared")
    assert again["resumed"]
    assert again["robust_accuracy"] == found["robust_accuracy"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_names_that_are_no_file_names_are_refused(name, tmp_path):
    with pytest.raises(UsageError, match="`name`"):
        RunDir(tmp_path).evaluation(name)


@pytest.mark.e2e
def test_a_suite_without_names_says_so(run, capsys):
    SUITES.register("plain")(lambda run, config, *, overwrite: {})
    try:
        assert command(run, "--suite=plain", "--name=mine") == 2
    finally:
        SUITES.unregister("plain")
    assert "has no --name" in capsys.readouterr().err
