import pytest

import benchmarks.__main__ as benchmarks
from acl_plugin import pipeline
from acl_plugin.evaluation.run_folder import evaluate_suite
from benchmarks import compact
from benchmarks.tables import cells
from conftest import ROOT


@pytest.mark.e2e
def test_a_run_is_kept_and_becomes_a_row(tiny_config, tmp_path, few, results):
    evaluation = pipeline.run(tiny_config, tmp_path / "run")
    assert benchmarks.main(["collect", "tiny", str(tmp_path / "run")]) == 0
    (kept,) = compact.read(results / "results" / "tiny.json")
    assert kept["evaluation"] == evaluation
    assert kept["environment"]["packages"]["torch"]
    assert "data_dir" not in kept["settings"]
    assert kept["robustbench"]["acl_ds_resnet10t"]["dataset"] == "digits"
    assert benchmarks.main(["table"]) == 0
    row = (results / "RESULTS.md").read_text().splitlines()[-1]
    assert row.startswith("| tiny | digits (16 images) | acl_ds | resnet10t | 2 | 0.1 | 12 | 0 |")


@pytest.mark.e2e
def test_a_suite_is_kept_and_becomes_a_table(tiny_config, tmp_path, few, results):
    import torch

    from acl_plugin.runs.folder import RunDir

    pipeline.run(tiny_config, tmp_path / "run")
    assert benchmarks.main(["suite", "tiny", str(tmp_path / "run")]) == 2
    found = evaluate_suite(RunDir(tmp_path / "run"), tiny_config, torch.device("cpu"), ["FGSM", "DeepFool"])
    assert benchmarks.main(["suite", "tiny", str(tmp_path / "run")]) == 0
    kept = compact.read(results / "results" / "suite_tiny.json")
    assert kept["suite"]["rows"]["FGSM"]["accuracy"] == found["rows"]["FGSM"]["accuracy"]
    assert "broken" not in kept["suite"]["rows"]["FGSM"]
    benchmarks.table()
    table = (results / "RESULTS.md").read_text()
    assert "## Standard attacks on digits, acl_ds" in table
    assert "| DeepFool | 50 |" in table


def test_mean_and_standard_deviation():
    assert cells.spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert cells.spread([1.25]) == "1.2"


@pytest.mark.parametrize(
    ("eps", "shown"),
    [(8 / 255, "8/255"), (1.0 / 255, "1/255"), (0.1, "0.1"), (0.5, "0.5"), (1, "1"), (1.0, "1.0"), ("8/255", "8/255")],
)
def test_a_radius_is_in_levels_where_it_is_a_number_of_them(eps, shown):
    assert cells.radius({"eps": eps}) == shown


@pytest.mark.parametrize(
    "arguments", [[], ["tabel"], ["collect"], ["collect", "x"], ["collect", "x", "nowhere"], ["suite", "x", "nowhere"]]
)
def test_mistakes_have_status_2_and_write_nothing(arguments, results, capsys):
    assert benchmarks.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list((results / "results").iterdir())


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(flag, capsys):
    assert benchmarks.main([flag]) == 0
    shown = capsys.readouterr().out.split()
    assert set(benchmarks.COMMANDS) <= set(shown)


@pytest.mark.e2e
def test_the_table_in_the_repository_is_that_of_its_files(results, monkeypatch):
    monkeypatch.setattr(benchmarks, "RESULTS", ROOT / "benchmarks" / "results")
    benchmarks.table()
    assert (results / "RESULTS.md").read_text() == (ROOT / "benchmarks" / "RESULTS.md").read_text()
