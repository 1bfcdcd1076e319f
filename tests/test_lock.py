import os
import subprocess
import sys
import time

import pytest
import torch

from acl_plugin import evaluate, leaderboard, probe, suite
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.lock import locked
from acl_plugin.run_dir import RunDir
from acl_plugin.trainer import pretrain
from conftest import TINY

HOLDS = """
import sys, time
from pathlib import Path
from acl_plugin.lock import locked
with locked(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that works in ``tmp_path / "run"``."""
    run = RunDir(tmp_path / "run")
    run.start(preset("digits", **TINY))
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(run.path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield run, process
    process.kill()
    process.wait()


def test_two_processes_do_not_work_in_one_folder(other):
    run, process = other
    config = preset("digits", **TINY)
    cpu = torch.device("cpu")
    stages = [
        lambda: pretrain(config, run.path),
        lambda: probe.probe(run, config, cpu),
        lambda: evaluate.evaluate(run, config, cpu),
        lambda: suite.evaluate(run, config, cpu),
        lambda: leaderboard.export(run, config),
    ]
    for stage in stages:
        with pytest.raises(UsageError, match=f"process {process.pid} works in .*run; wait for it, or choose another"):
            stage()
    assert not run.encoder.exists()


def test_the_lock_of_a_process_that_was_killed_is_taken_over_with_a_notice(other, capsys):
    run, process = other
    process.kill()
    process.wait()
    with locked(run.path):
        pass
    assert f"the lock of process {process.pid}, which has ended, is taken over" in capsys.readouterr().err
    with locked(run.path):
        pass
    assert capsys.readouterr().err == ""


def test_stages_may_be_nested_and_an_exception_gives_it_back(tmp_path):
    with locked(tmp_path), locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert (tmp_path / ".lock").read_text() == ""


def test_ranks_beside_the_first_leave_the_lock_to_it(other, monkeypatch):
    run, _ = other
    monkeypatch.setenv("LOCAL_RANK", "1")
    with locked(run.path):
        pass


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with locked(tmp_path / "nowhere"):
        assert not (tmp_path / "nowhere").exists()


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run = pretrain(preset("digits", **TINY | {"epochs": 1}), tmp_path / "run")
    os.utime(run.encoder, (0, 0))
    assert pretrain(preset("digits", **TINY | {"epochs": 1}), tmp_path / "run").encoder.is_file()
