import json

import pytest
import torch
from safetensors.torch import save_file

from acl_plugin.models.backbones import create_backbone
from acl_plugin.runs.folder import RunDir
from benchmarks import __main__ as main
from benchmarks import compact, finetuning
from benchmarks.finetuning import BUDGET, METHODS, SETTINGS, job
from benchmarks.objectives import forwards
from conftest import QUICK, TINY, spec


def start_of(study):
    return study.split(", ")[1]


@pytest.mark.parametrize("study", SETTINGS)
def test_every_method_has_the_same_budget(study, tmp_path):
    for row in METHODS:
        config = job(study, row, 0, tmp_path, {}).config
        spent = forwards(config) * config.training.epochs
        assert spent == pytest.approx(BUDGET[study], abs=forwards(config) / 2)


@pytest.mark.parametrize("study", SETTINGS)
def test_all_start_from_the_same_encoder(study, tmp_path):
    start = job(study, start_of(study), 3, tmp_path, {})
    assert start.config.encoder.init is None
    assert start.row.untrained == start.config.encoder.pretrained == (start_of(study) == "imagenet")
    for row, how in METHODS.items():
        config = job(study, row, 3, tmp_path, {}).config
        given = config.encoder.init if how == "init" else config.objective.objective_kwargs["teacher"]
        assert str(given) == str(start.out)
        assert not config.encoder.pretrained


def small(**options):
    values = {k: v for k, v in (TINY | QUICK | options).items() if k not in ("objective", "objective_kwargs")}
    return [f"--options.{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in values.items()]


@pytest.mark.e2e
def test_runs_results_and_table(results, tmp_path, few, monkeypatch):
    monkeypatch.setitem(BUDGET, "digits, simclr", 32)
    where = ["--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--seeds", "[0]"]
    assert main.main(["finetuning", *where, *small()]) == 0
    kept = compact.read(results / "results" / "finetuning_digits_simclr.json")
    assert [run["row"] for run in kept] == ["simclr", *METHODS]
    assert kept[1]["encoder_forwards_per_image"] == pytest.approx(32, abs=4)
    table = (results / "RESULTS.md").read_text()
    assert "## Finetuning a benign encoder on digits, from simclr" in table
    assert all(f"| {row} |" in table for row in METHODS)
    assert RunDir(tmp_path / "runs" / "deacl" / "0").evaluation_file.is_file()
    for wrong in (["--data", "digit"], ["--start", "imagenet"]):
        assert main.main(["finetuning", *wrong]) == 2


@pytest.mark.e2e
def test_pretrained_weights_are_a_start_and_are_evaluated_at_each_radius(results, tmp_path, few, monkeypatch):
    network = {"pretrained": True, "stem": "native", "input_size": 32}
    monkeypatch.setitem(SETTINGS, "digits, imagenet", network)
    monkeypatch.setitem(BUDGET, "digits, imagenet", 14)
    monkeypatch.setitem(finetuning.RADII, "digits, imagenet", ("1/255",))
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(create_backbone(spec((3, 224, 224), stem="native"))[0].state_dict(), weights)
    where = ["--start", "imagenet", "--weights", str(weights), "--runs", str(tmp_path / "runs"), "--at-a-time", "1"]
    assert main.main(["finetuning", *where, "--seeds", "[0]", *small()]) == 0
    kept = compact.read(results / "results" / "finetuning_digits_imagenet.json")
    spent = {run["row"]: run["encoder_forwards_per_image"] for run in kept}
    assert list(spent) == ["imagenet", *METHODS]
    assert [row for row, forwards in spent.items() if forwards == 0] == ["imagenet"]
    assert all(run["at"]["1/255"]["eps"] == pytest.approx(1 / 255) for run in kept)
    assert "| at 1/255 |" in (results / "RESULTS.md").read_text()
