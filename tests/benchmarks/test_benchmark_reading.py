import multiprocessing

import pytest

import benchmarks.__main__ as main
from benchmarks import compact


@pytest.mark.e2e
@pytest.mark.skipif(
    not __import__("pathlib").Path("/proc/self/smaps_rollup").is_file(), reason="memory is read on Linux"
)
def test_what_is_measured_becomes_a_table(results, fabricated, monkeypatch):
    fork = multiprocessing.get_context("fork")  # processes that need not import everything
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    small = ["--images=600", "--measured=512", "--workers=[0,1]", "--repeats=1"]
    assert main.main(["reading", "--data-dir", str(fabricated), *small]) == 0
    kept = compact.read(results / "results" / "reading.json")
    assert all(row["images_per_second"] > 0 for row in kept["rows"])
    kinds = [(row["kind"], row["workers"]) for row in kept["rows"]]
    assert kinds == [("disk", 0), ("ImageFolder", 0), ("disk", 1), ("ImageFolder", 1), ("ram", 0)]
    assert "## Reading images from disk" in (results / "RESULTS.md").read_text()
