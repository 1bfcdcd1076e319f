import json

import benchmarks.__main__ as main
from acl_plugin import pipeline
from acl_plugin.config import preset
from conftest import TINY


def test_both_are_run_on_the_same_and_become_a_row(tmp_path, monkeypatch, few):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(main, "HERE", tmp_path)
    monkeypatch.setattr(main, "RESULTS", tmp_path / "results")
    pipeline.run(preset("digits", **TINY | {"epochs": 4, "limit_train": 64, "limit_test": 30}), tmp_path / "run")
    command = ["autoattack-speed", "tiny", str(tmp_path / "run"), "--limit", "30", "--turns", "2", "--eps", "0.01"]
    assert main.main(command) == 0
    kept = json.loads((tmp_path / "results" / "autoattack_speed_tiny.json").read_text())
    assert (kept["n"], kept["eps"], len(kept["seconds"])) == (30, 0.01, 2)
    assert kept["ratio_range"][0] <= kept["ratio"] <= kept["ratio_range"][1]
    for one, other in zip(kept["robust_accuracies"], kept["reference_robust_accuracies"], strict=True):
        assert abs(one - other) <= 2 / 30
    assert "| digits, resnet10t, gsa_rsl | 30 |" in (tmp_path / "RESULTS.md").read_text()
