"""Doing the runs of a comparison: collapsed runs, and workers in parallel."""

import json
import os
import signal

import pytest
from processes import ended, started

import benchmarks.__main__ as main
from acl_plugin import pipeline
from acl_plugin.errors import TrainingStopped
from acl_plugin.runs.folder import RunDir
from benchmarks import compact, selection
from benchmarks.rows import EXPERIMENTS, Row
from conftest import QUICK, TINY

COMMANDS = {
    "ablation": ("experiment_ablation_digits", []),
    "objectives": ("objectives_digits", ["--rows", "[simclr,acl_ds]"]),
    "finetuning": ("finetuning_digits_simclr", []),
    "frontier": ("frontier_digits", ["--rows", "[acl_ds]", "--attacks", "[PGD-1]"]),
    "selection": ("selection_digits_val", ["--forms", "[acl_ds]"]),
}
"""Commands that do runs; of each, its file and a part of its rows."""


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_collapses_is_a_result_and_not_done_again(command, results, tmp_path, few, monkeypatch):
    whole, collapsed = pipeline.pretrain, []

    def pretrain(config, out, *others, **options):
        if "acl_ds" not in (config.objective.objective, config.objective.objective_kwargs.get("base")):
            return whole(config, out, *others, **options)
        collapsed.append(out)
        RunDir(out).start(config)
        raise TrainingStopped("the encoder has collapsed")

    monkeypatch.setattr(pipeline, "pretrain", pretrain)
    rows = [Row("simclr", options={"objective": "simclr"}), Row("acl_ds", options={"objective": "acl_ds"})]
    monkeypatch.setitem(EXPERIMENTS, "ablation", lambda: rows)
    monkeypatch.setattr(selection, "GRID", {"benign": (2.0,)})
    file, part = COMMANDS[command]
    options = {name: value for name, value in (TINY | QUICK).items() if name != "objective"}
    small = [f"--options.{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in options.items()]
    if command == "objectives":
        monkeypatch.setitem(main.benchmarked.SETTINGS, "digits", options)
        small = []
    where = ["--seeds", "[0]", "--runs", str(tmp_path / "runs"), "--at-a-time", "1"]
    for _ in range(2):
        assert main.main([command, *part, *where, *small]) == 0
        kept = compact.read(results / "results" / f"{file}.json")
        stopped = [run.get("stopped") for run in (kept["runs"] if isinstance(kept, dict) else kept)]
        assert stopped.count("the encoder has collapsed") == len(collapsed) == 1
        assert None in stopped
    if command not in ("frontier", "selection"):  # which count it as 0
        assert "(1 of 1 collapsed)" in (results / "RESULTS.md").read_text()


@pytest.mark.e2e
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from types import SimpleNamespace\n"
        "from benchmarks.jobs import do_all\n"
        "def work(each):\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    do_all(work, [SimpleNamespace(out=0)], 2)\n"  # as many workers are started as there are runs
    )
    shown, theirs = os.pipe()
    parent = started([], theirs, script=script)
    os.close(theirs)
    with open(shown, "rb") as told:
        assert told.readline() == b"at work\n"
        parent.send_signal(signal.SIGKILL)
        assert told.read() == b""  # which returns when nobody is left who could write
    assert ended(parent) == -signal.SIGKILL
