import json

import pytest

from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import write_json
from benchmarks import __main__ as main
from benchmarks import compact, frontier
from benchmarks.frontier import ATTACKS, NO_ATTACK, ROWS, Point, attacks_of, job, merged, points
from benchmarks.objectives import config_of, folder_of
from conftest import QUICK, TINY


def run(row="acl_ds", attack="PGD-5", seed=0, forwards=10.0, robust=0.5):
    accuracies = {"clean_accuracy": 0.9, "robust_accuracy": robust, "n": 20, "seconds": 3.0}
    return {"row": row, "attack": attack, "seed": seed, "forwards": forwards, **accuracies}


@pytest.mark.parametrize("data", frontier.SETTINGS)
def test_every_row_is_accepted_with_every_attack(data, tmp_path):
    for row in ROWS:
        for attack in attacks_of(row):
            config = job(row, attack, 0, tmp_path, data, frontier.SETTINGS[data]).config
            if attack != NO_ATTACK:
                assert config.objective.attack == ATTACKS[attack]["attack"]


def test_every_row_but_those_without_an_attack_has_a_point_for_each_attack():
    benign = {"simclr", "byol", "simsiam", "moco", "barlow_twins", "vicreg"}
    assert {row for row in ROWS if attacks_of(row) == [NO_ATTACK]} == benign


@pytest.mark.parametrize("data", frontier.SHARED)
def test_runs_with_the_usual_attack_are_those_of_the_objectives(data, tmp_path):
    for row in ROWS:
        attack = frontier.USUAL if frontier.USUAL in attacks_of(row) else NO_ATTACK
        ours = job(row, attack, 1, tmp_path, data, frontier.SETTINGS[data])
        assert ours.config == config_of(row, 1, tmp_path, data)
        assert ours.out == folder_of(row, 1, tmp_path)


def test_more_steps_cost_more(tmp_path):
    for row in ROWS:
        if attacks_of(row) != [NO_ATTACK]:
            jobs = [job(row, f"PGD-{n}", 0, tmp_path, "digits", {}) for n in (1, 2, 3, 5, 10)]
            costs = [frontier.encoder_forwards(each.config.options()) for each in jobs]
            assert costs == sorted(set(costs))


def test_a_teacher_costs_too(tmp_path):
    teacher = job("simclr", NO_ATTACK, 0, tmp_path, "digits", {})
    paid = {
        row for row in ROWS if frontier.needs_teacher(job(row, attacks_of(row)[0], 0, tmp_path, "digits", {}).config)
    }
    assert paid == {"fare", "deacl", "profeat", "advcl", *(f"a_infonce, advcl {each}" for each in ("ip", "hn", "iphn"))}
    for each, seconds in ((teacher, 3.0), (student := job("deacl", "PGD-1", 0, tmp_path, "digits", {}), 4.0)):
        run = RunDir(each.out)
        run.path.mkdir(parents=True)
        write_json(run.pretraining_file, {"seconds": seconds})
        write_json(run.evaluation_file, {"clean_accuracy": 0.9, "robust_accuracy": 0.5, "n": 20})
    alone, both = (
        frontier.kept("simclr", NO_ATTACK, teacher, teacher),
        frontier.kept("deacl", "PGD-1", student, teacher),
    )
    own = frontier.encoder_forwards(student.config.options())
    assert (alone["seconds"], both["seconds"], both["forwards"]) == (3.0, 7.0, own + alone["forwards"])


def test_the_frontier_has_what_no_cheaper_point_exceeds():
    def point(forwards, robust):
        return Point("acl_ds", "PGD-5", forwards, (robust,), (90.0,), (1.0,))

    found = [point(4, 10), point(1, 5), point(2, 5), point(3, 30), point(3, 20), point(9, 31)]
    assert [(each.forwards, each.mean) for each in frontier.frontier(found)] == [(1, 5), (3, 30), (9, 31)]


def test_points_are_means_over_seeds_and_a_collapsed_run_counts_as_0():
    stopped = {"row": "acl_ds", "attack": "PGD-5", "seed": 1, "forwards": 10.0, "stopped": "collapsed"}
    assert points([run(robust=0.5), stopped])[0].mean == 25


def test_the_figure_has_every_point_and_names_the_frontier():
    runs = [run(), run(attack="PGD-1", forwards=5.0, robust=0.6), run("simclr", NO_ATTACK, forwards=1.0, robust=0.1)]
    axes = frontier.figure({"runs": runs}).axes[0]
    assert sum(len(drawn.get_offsets()) for drawn in axes.collections) == 3
    assert [text.get_text() for text in axes.texts] == ["simclr", "acl_ds, PGD-1"]


def test_a_part_replaces_that_part_of_the_results():
    before = {"settings": {"epochs": 1}, "runs": [run(seed=0), run(seed=1), run("simclr", NO_ATTACK)]}
    new = {"settings": {"epochs": 1}, "runs": [run(seed=1, robust=0.7), run("rocl")]}
    both = merged(before, new)["runs"]
    assert [(each["row"], each["seed"], each["robust_accuracy"]) for each in both] == [
        ("simclr", 0, 0.5),
        ("acl_ds", 0, 0.5),
        ("acl_ds", 1, 0.7),
        ("rocl", 0, 0.5),
    ]
    assert merged(before, new | {"settings": {"epochs": 2}})["runs"] == new["runs"][:1] + new["runs"][1:]
    assert merged(None, new)["runs"] == new["runs"]


@pytest.mark.e2e
def test_runs_results_table_and_figure(results, tmp_path, few):
    small = [
        f"--options.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in (TINY | QUICK).items()
        if name not in ("objective", "objective_kwargs")
    ]
    where = ["--runs", str(tmp_path / "runs"), "--at-a-time", "1", "--seeds", "[0]"]
    part = ["--rows", "[acl_ds,deacl]", "--attacks", "[PGD-1,PGD-3]"]
    assert main.main(["frontier", *where, *part, *small]) == 0
    kept = compact.read(results / "results" / "frontier_digits.json")
    assert [(each["row"], each["attack"]) for each in kept["runs"]] == [
        ("simclr", "none"),
        ("acl_ds", "PGD-1"),
        ("acl_ds", "PGD-3"),
        ("deacl", "PGD-1"),
        ("deacl", "PGD-3"),
    ]
    assert (results / "frontier_digits.svg").is_file()
    assert "## Robustness and cost on digits" in (results / "RESULTS.md").read_text()
    for wrong in (["--data", "digit"], ["--rows", "[acl]"], ["--attacks", "[PGD-4]"]):
        assert main.main(["frontier", *wrong]) == 2
