import pytest

import benchmarks.__main__ as main
from acl_plugin import pipeline
from acl_plugin.config import preset
from benchmarks import autoattack_speed, compact
from conftest import TINY, shorten


@pytest.mark.e2e
def test_both_are_run_on_the_same_and_become_a_row(results, few, monkeypatch):
    shorten(monkeypatch.setattr, 5, 50)  # enough that two seeds break the same, up to two images
    monkeypatch.setattr(autoattack_speed, "ceiling", lambda *_: 1e12)
    pipeline.run(preset("digits", **TINY | {"limit_test": 30}), results / "run")
    command = ["autoattack-speed", "tiny", str(results / "run"), "--limit", "30", "--turns", "2", "--eps", "0.01"]
    assert main.main(command) == 0
    kept = compact.read(results / "results" / "autoattack_speed_tiny.json")
    assert (kept["n"], kept["eps"], len(kept["seconds"])) == (30, 0.01, 2)
    assert kept["ratio_range"][0] <= kept["ratio"] <= kept["ratio_range"][1]
    assert 0 < kept["reference_share_of_ceiling"] == kept["reference_flops_per_second"] / kept["ceiling"]
    for one, other in zip(kept["robust_accuracies"], kept["reference_robust_accuracies"], strict=True):
        assert abs(one - other) <= 2 / 30
    assert "| digits, resnet10t, acl_ds | 30 |" in (results / "RESULTS.md").read_text()
