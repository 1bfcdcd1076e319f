import pytest

import benchmarks.__main__ as main
from benchmarks import compact, startup


@pytest.mark.e2e
def test_what_is_measured_becomes_a_table(results, monkeypatch):
    names = ("import torch", "acl-plugin --help", "a mistake in a command", "tab completion")
    monkeypatch.setattr(startup, "COMMANDS", {name: startup.COMMANDS[name] for name in names})
    assert main.main(["startup", "--repeats=1"]) == 0
    kept = compact.read(results / "results" / "startup.json")
    assert [row["name"] for row in kept["rows"]] == list(names)
    assert all(row["fastest"] <= row["seconds"] <= row["slowest"] for row in kept["rows"])
    assert kept["rows"][0]["to_torch"] == 1
    assert "## Start-up" in (results / "RESULTS.md").read_text()
