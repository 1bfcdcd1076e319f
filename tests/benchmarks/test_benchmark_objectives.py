"""The comparison of all objectives: its rows, its runs and its table."""

from pathlib import Path

import pytest

import benchmarks.__main__ as main
from acl_plugin import available
from acl_plugin.config import preset
from benchmarks import compact, objectives
from conftest import TINY


@pytest.fixture
def results(results, monkeypatch):
    monkeypatch.setattr(objectives, "PUBLISHED_SIZES", (2, 5))
    tiny = TINY | {"aft_epochs": 1}
    monkeypatch.setitem(objectives.SETTINGS, "digits", tiny)
    return results


def test_every_objective_and_every_variant_has_a_row():
    rows = objectives.ROWS
    assert {row.get("objective", name) for name, row in rows.items()} == set(available())
    variants = {(row["base"], row["variant"]) for row in rows.values() if "base" in row}
    assert variants == {(base, variant) for base in ("advcl", "rocl") for variant in ("ip", "hn", "iphn")}
    assert {row.get("lpaft") for row in rows.values()} == {None, "dynacl", "air"}
    assert {row.get("coreset") for row in rows.values()} == {None, "rcs"}


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_rows_differ_in_nothing_but_what_they_name(data):
    base = objectives.config_of("simclr", 1, Path("runs"), data).options()
    for name, row in objectives.ROWS.items():
        config = objectives.config_of(name, 1, Path("runs"), data).options()
        changed = {k for k, v in config.items() if base[k] != v}
        assert changed <= {"objective", "objective_kwargs", *row, *objectives.SETTINGS[data]}, name


def test_encoder_forwards_of_whole_runs():
    def forwards(**options):
        return objectives.encoder_forwards(preset("digits", epochs=10, **options).options())

    assert forwards(objective="simclr") == 60
    assert forwards(objective="acl_ds") == 320
    assert forwards(objective="dynacl", lpaft="dynacl", aft_epochs=3) == 280 + 3 * 27
    # one whole epoch, nine of a fifth, one selection of an attack and a forward, twice for what is taken
    assert forwards(objective="acl_ds", coreset="rcs") == pytest.approx(32 + 9 * 0.2 * 32 + 1.2 * 24)


@pytest.mark.e2e
def test_runs_results_and_table_by_one_command(results, tmp_path, few, monkeypatch):
    rows = '["deacl","advcl","simclr"]'
    command = ["objectives", "--rows", rows, "--seeds", "[1]", "--runs", str(tmp_path / "runs"), "--at-a-time", "1"]
    assert main.main(command) == 0
    kept = compact.read(results / "results" / "objectives_digits.json")
    assert [(run["row"], run["settings"]["seed"]) for run in kept] == [(row, 1) for row in ("simclr", "deacl", "advcl")]
    assert kept[1]["settings"]["objective_kwargs"]["teacher"].endswith("simclr/1")
    table = (results / "RESULTS.md").read_text()
    assert "## Objectives on digits" in table
    (deacl,) = (line for line in table.splitlines() if line.startswith("| deacl |"))
    assert deacl.split("|")[6].strip() == "34"  # two epochs of 17
    # again: nothing is done twice
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("encoder.pt")}
    assert main.main(command) == 0
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("encoder.pt")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digit"], "unknown dataset 'digit'; the nearest: digits"),
        (["--rows", '["simcrl"]'], "unknown row 'simcrl'; the nearest: simclr"),
        (["--rows", '["advcl"]'], "is missing; run first: python -m benchmarks objectives --rows"),
        (["--sedes", "[0]"], "unknown argument '--sedes'; the nearest: --seeds"),
    ],
)
def test_mistakes_are_reported(results, tmp_path, arguments, message, capsys):
    assert main.main(["objectives", "--runs", str(tmp_path / "runs"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
