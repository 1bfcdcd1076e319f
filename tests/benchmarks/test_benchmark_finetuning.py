import json

import pytest

from acl_plugin.runs.folder import RunDir
from benchmarks import __main__ as main
from benchmarks import compact, finetuning
from benchmarks.finetuning import BUDGET, METHODS, START, forwards, job
from conftest import QUICK, TINY


@pytest.mark.parametrize("data", BUDGET)
def test_every_method_has_the_same_budget(data, tmp_path):
    for row in METHODS:
        config = job(row, 0, tmp_path, data, {}).config
        spent = forwards(config) * config.training.epochs
        assert spent == pytest.approx(BUDGET[data], abs=forwards(config) / 2)


def test_all_start_from_the_same_encoder(tmp_path):
    start = job(START, 3, tmp_path, "digits", {})
    assert start.config.encoder.init is None
    for row, how in METHODS.items():
        config = job(row, 3, tmp_path, "digits", {}).config
        given = config.encoder.init if how == "init" else config.objective.objective_kwargs["teacher"]
        assert str(given) == str(start.out)


@pytest.mark.e2e
def test_runs_results_and_table(results, tmp_path, few, monkeypatch):
    monkeypatch.setattr(finetuning, "BUDGET", {"digits": 32})
    small = [
        f"--options.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in (TINY | QUICK).items()
        if name not in ("objective", "objective_kwargs")
    ]
    where = ["--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--seeds", "[0]"]
    assert main.main(["finetuning", *where, *small]) == 0
    kept = compact.read(results / "results" / "finetuning_digits.json")
    assert [run["row"] for run in kept] == [START, *METHODS]
    assert kept[1]["encoder_forwards_per_image"] == pytest.approx(32, abs=4)
    table = (results / "RESULTS.md").read_text()
    assert "## Finetuning a benign encoder on digits" in table
    assert all(f"| {row} |" in table for row in METHODS)
    assert RunDir(tmp_path / "runs" / "deacl" / "0").evaluation_file.is_file()
    assert main.main(["finetuning", "--data", "digit"]) == 2
