"""The experiments on GSA-RSL: their rows, runs, results and tables."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as main
from acl_plugin import create_objective
from acl_plugin.config import TWO_SIDED
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.runs.folder import RunDir
from benchmarks import compact, experiments, rows, selection
from benchmarks.experiments import BUDGET, config_hash, job
from benchmarks.objectives import encoder_forwards
from benchmarks.rows import ALL, CHOSEN, COMPARED, EXPERIMENTS, SUPERVISED, TWO_SIDED_FORM
from benchmarks.tables.theory import TERMS, correlation
from conftest import QUICK, TINY

SHARED = {"data_dir": None, "limit_test": 250}


@pytest.fixture
def results(results, monkeypatch):
    monkeypatch.setitem(experiments.SETTINGS, "digits", TINY | QUICK | {"keep_every": 1})
    return results


def planned(name, seed=0):
    return [job(row, seed, "digits", SHARED, Path("runs")) for row in EXPERIMENTS[name]()]


def test_the_ablation_has_every_subset_once():
    found = {each.row.label: each for each in planned("ablation")}
    subsets = set()
    for label, each in found.items():
        if each.row.untrained or each.row is TWO_SIDED_FORM:
            continue
        objective = create_objective("gsa_rsl", **each.config.objective.objective_kwargs)
        sharpness = "" if not objective.rho else "ASAM" if objective.adaptive else "SAM"
        on = bool(objective.adversarial), bool(objective.benign), bool(objective.global_)
        named = [*(name in label.split(" + ") for name in ("adversarial", "benign", "global"))]
        assert [*on] == named, label
        assert sharpness == next((name for name in ("ASAM", "SAM") if name in label.split(" + ")), ""), label
        assert objective.base_name == "one-sided"
        subsets.add((*on, sharpness))
    kinds = product((False, True), (False, True), (False, True), ("", "SAM", "ASAM"))
    assert subsets == {s for s in kinds if any(s[:3]) and (s[1] or not s[3])}
    assert found[ALL].config.objective.objective_kwargs == {}  # the released method
    assert found["two-sided form"].config.objective.objective_kwargs == TWO_SIDED
    assert found[SUPERVISED.label].config.probe.probe_protocol == "aff_pgd"
    assert found[SUPERVISED.label].config.probe.probe_epochs == found[ALL].config.training.epochs
    assert found[SUPERVISED.label].config.encoder.backbone_kwargs == found[ALL].config.encoder.backbone_kwargs


def test_experiments_share_runs_and_folders_show_settings_apart():
    where = {name: {each.row.label: each.out for each in planned(name)} for name in EXPERIMENTS}
    everything = where["ablation"][ALL]
    assert where["divergences"]["linear"] == where["sweeps"]["released"] == everything
    assert where["bases"]["one-sided + ours, released"] == everything
    assert (
        where["divergences"]["none"] == where["sweeps"]["global_ 0"] == where["ablation"]["adversarial + benign + ASAM"]
    )
    assert where["bases"]["two-sided form"] == where["ablation"]["two-sided form"]
    assert len({*where["ablation"].values()}) == len(where["ablation"])
    assert {str(each.out) for each in planned("ablation", 1)} == {
        str(each.out).removesuffix("0") + "1" for each in planned("ablation", 0)
    }
    assert set(where["divergences"]) == {"none", "linear", "deep", *DIVERGENCES}


def test_every_base_is_there_alone_and_with_the_additions():
    found = {each.row.label: each.config.objective for each in planned("bases")}
    for name, settings in rows.BASES.items():
        assert (found[name].objective, found[name].objective_kwargs) == (name, settings)
        added = found[f"{name} + ours"].objective_kwargs
        assert (added["base"], added.get("base_kwargs", {})) == (name, settings)
        assert {k: v for k, v in added.items() if k not in ("base", "base_kwargs")} == CHOSEN.get(
            name, CHOSEN["acl_ds"]
        )


def test_the_selection_takes_the_best_value_of_one_setting_after_the_other(monkeypatch):
    """On a table of accuracies: the first of equal values, and h's rate only if there is an h."""
    monkeypatch.setattr(selection, "do_all", lambda *_: None)
    monkeypatch.setattr(selection, "accuracy", lambda jobs: worth(jobs[0]))
    seen = []

    def tried(settings):
        seen.extend(settings)
        return [SimpleNamespace(out=str(settings), **settings[0])]

    def worth(of):
        return (of.benign == 0.5) + (of.rho in (0.5, 2.0)) + (of.global_ == 0.0)

    jobs, best = selection.select(tried, 1)
    assert best == {"benign": 0.5, "rho": 0.5, "global_": 0.0, "discriminator_lr": 0.2}
    assert len(seen) == 12
    assert len(jobs) == 10  # values that are compared again are no further runs
    assert seen[0] == {name: values[0] for name, values in selection.GRID.items()} == selection.RELEASED


def test_the_hash_leaves_out_seed_and_place():
    (one, *_), (other, *_) = planned("sweeps", 0), planned("sweeps", 3)
    assert config_hash(one.config) == config_hash(other.config)
    assert config_hash(one.config) != config_hash(one.config, untrained=True)


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_transfer_probes_other_classes_with_the_same_encoder(data):
    for each in (job(row, 1, data, SHARED, Path("runs")) for row in EXPERIMENTS["transfer"]()):
        assert each.config.data.data == {"digits": "digits_5_9", "cifar10": "cifar100"}[data]
        assert each.source.config.data.data == {"digits": "digits_0_4", "cifar10": "cifar10"}[data]
        assert each.source.config.objective.objective_kwargs == each.row.objective
        assert each.config.machine.seed == each.source.config.machine.seed == 1


def test_the_budget_is_one_of_forwards():
    for each in planned("budget"):
        forwards = encoder_forwards(each.config.options())
        one = forwards / each.config.training.epochs
        assert forwards == pytest.approx(BUDGET["digits"], abs=one / 2)
    assert {each.config.objective.objective for each in planned("budget")} == {"gsa_rsl", *COMPARED}


def test_headline_takes_the_encoders_of_the_ablation_and_all_test_images():
    ablation = {each.row.label: each for each in planned("ablation")}
    for each in planned("headline"):
        assert each.config.data.limit_test is None
        if each.row.label in ablation:
            assert each.source.out == ablation[each.row.label].out


@pytest.mark.e2e
def test_runs_results_and_tables(results, tmp_path, few, monkeypatch):
    chosen = [rows.ablation()[0], rows.Row(ALL)]
    monkeypatch.setitem(EXPERIMENTS, "ablation", lambda: [*chosen, SUPERVISED])
    where = ["--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--options.epochs", "2"]
    assert main.main(["ablation", "--seeds", "[0, 1]", *where]) == 0
    kept = compact.read(results / "results" / "experiment_ablation_digits.json")
    assert [(run["row"], run["settings"]["seed"]) for run in kept["runs"]] == [
        (row.label, seed) for seed in (0, 1) for row in [*chosen, SUPERVISED]
    ]
    assert kept["runs"][0]["pretraining"]["epochs"] == 0
    table = (results / "RESULTS.md").read_text()
    assert "## Ablation on digits" in table
    assert f"| {ALL} | {kept['runs'][1]['hash']} |" in table
    # again: nothing is done twice
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("encoder.pt")}
    assert main.main(["ablation", "--seeds", "[0, 1]", *where]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("encoder.pt")}

    assert main.main(["correlation", "--seeds", "[0]", *where]) == 0
    audited = compact.read(results / "results" / "correlation_digits.json")
    assert len(audited["rows"]) == 1 + 2  # the untrained encoder, and two checkpoints of the other row
    assert [row["last"] for row in audited["rows"]] == [True, False, True]
    assert [row["adversarial"] for row in audited["rows"]] == [False, True, True]
    (own,) = json.loads(RunDir(tmp_path / "runs" / audited["rows"][0]["run"]).audit_file.read_text())["rows"]
    assert audited["rows"][0]["terms"] == pytest.approx(own["terms"], rel=1e-6)
    assert all(float(f"{value:.7g}") == value for value in audited["rows"][0]["terms"].values())
    table = (results / "RESULTS.md").read_text()
    assert "## Audit of the ablation on digits" in table
    assert "hold in 9 of 9 cases" in table

    # elsewhere, another seed is added to what the result files have
    where[1] = str(tmp_path / "elsewhere")
    assert main.main(["correlation", "--add", *where]) == 2  # no folder of a run
    assert main.main(["ablation", "--seeds", "[1, 2]", "--add", *where]) == 0
    assert {path.name for path in (tmp_path / "elsewhere").glob("*/*")} == {"2"}
    added = compact.read(results / "results" / "experiment_ablation_digits.json")
    assert added["runs"][: len(kept["runs"])] == kept["runs"]
    assert [run["seed"] for run in added["runs"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert main.main(["correlation", "--seeds", "[0, 1, 2]", "--add", *where]) == 0
    both = compact.read(results / "results" / "correlation_digits.json")["rows"]
    assert both[:3] == audited["rows"]
    assert [row["seed"] for row in both[3:]] == [2, 2, 2]


@pytest.mark.e2e
def test_budgeted_rows_have_forwards_and_pgd_beside_autoattack(results, tmp_path, few, monkeypatch):
    monkeypatch.setitem(BUDGET, "digits", 64)
    monkeypatch.setitem(EXPERIMENTS, "budget", lambda: rows.budget()[:2])
    assert main.main(["budget", "--seeds", "[0]", "--runs", str(tmp_path / "runs"), "--at-a-time", "1"]) == 0
    for run in compact.read(results / "results" / "experiment_budget_digits.json")["runs"]:
        assert run["encoder_forwards_per_image"] == pytest.approx(64, abs=24)
        assert run["evaluation"]["robust_accuracy"] <= run["pgd"] <= run["evaluation"]["clean_accuracy"]
    assert "| row | hash | epochs | F | PGD-20 | clean |" in (results / "RESULTS.md").read_text()


@pytest.mark.e2e
def test_transfer_and_headline_run(results, tmp_path, few, monkeypatch):
    where = ["--seeds", "[0]", "--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--options.objective", "gsa_rsl"]
    for name in ("transfer", "headline"):
        some = EXPERIMENTS[name]()[:1]
        monkeypatch.setitem(EXPERIMENTS, name, lambda some=some: some)
        assert main.main([name, *where]) == 0
        kept = compact.read(results / "results" / f"experiment_{name}_digits.json")
        assert len(kept["runs"]) == len(EXPERIMENTS[name]())
    first = compact.read(results / "results" / "experiment_transfer_digits.json")["runs"][0]
    transferred = RunDir(tmp_path / "runs" / first["hash"] / "0")
    assert json.loads(transferred.pretraining_file.read_text())["transferred_from"] == "digits_0_4"


@pytest.mark.e2e
def test_a_selection_is_stored_and_becomes_a_table(results, tmp_path, few, monkeypatch):
    monkeypatch.setattr(selection, "GRID", {"benign": (2.0, 0.5), "global_": (0.1, 0.0)})
    small = [
        f"--options.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in (TINY | QUICK).items()
    ]
    where = ["--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--forms", "[acl_ds]", "--seeds", "[0]"]
    assert main.main(["selection", *where, *small]) == 0
    kept = compact.read(results / "results" / "selection_digits_val.json")
    assert [run["form"] for run in kept["runs"]] == 3 * ["acl_ds"] + ["two-sided form"]
    assert {run["settings"]["base"] for run in kept["runs"][:3]} == {"acl_ds"}
    assert kept["runs"][0]["n"] == TINY["limit_test"]
    table = (results / "RESULTS.md").read_text()
    assert "## Settings of GSA-RSL, chosen on digits_val" in table
    assert table.count("| acl_ds | **") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablation", "--data", "digit"], "unknown dataset 'digit'; the nearest: digits"),
        (["sweeps", "--data", "cifar10"], "cifar10 needs --data-dir"),
        (["sweeps", "--options.epcohs", "1"], "unknown option 'epcohs'; the nearest: epochs"),
        (["correlation"], "has no encoder; run first: python -m benchmarks ablation --data digits"),
    ],
)
def test_mistakes_are_reported(results, tmp_path, arguments, message, capsys):
    assert main.main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
def test_a_table_of_audits_groups_by_row():
    def row(label, run, loss, last=True):
        terms = dict.fromkeys(("benign_loss", *TERMS), loss) | {"robust_loss": loss, "robust_accuracy": 0.5}
        bound = {"name": "coupling", "left": 0.1, "right": loss, "certain": True}
        about = {"row": label, "run": run, "adversarial": label != "benign", "epochs": 4, "last": last}
        return about | {"terms": terms, "bounds": [bound]}

    rows = [row("adversarial", f"a/{i}", 1.0 + i) for i in range(3)] + [
        row("benign", f"b/{i}", 5.0 + i) for i in range(3)
    ]
    rows.append(row("two-sided form", "c/0", 3.0))
    kept = {"data": "digits", "n": 8, "settings": {"adversary": "PGD-20", "eps": 0.1, "probe": "p"}, "rows": rows}
    lines = correlation(kept)
    assert any(line.startswith("| adversarial | 2 | 2 |") for line in lines)
    assert any(line.startswith("| adversarial | 0.10 ≤ 2.00 (3/3) |") for line in lines)
    assert any("| last ones of adversarial runs (4) |" in line for line in lines)
    assert any(line.startswith("| nce_adv | 1.00 [") for line in lines)
