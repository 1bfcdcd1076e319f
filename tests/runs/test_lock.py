import multiprocessing
import os
import threading
import time

import lightning
import pytest
import torch

from acl_plugin import pipeline
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import run_folder
from acl_plugin.leaderboard import export
from acl_plugin.probing import protocols
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import load_encoder
from acl_plugin.runs.published import import_run
from acl_plugin.runs.transfer import transfer, transferred
from acl_plugin.runtime import seeding
from acl_plugin.training.pretrain import pretrain
from conftest import QUICK, TINY


def hold(path, holds):
    with locked(path):
        holds.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that works in ``tmp_path / "run"``."""
    run = RunDir(tmp_path / "run")
    run.start(preset("digits", **TINY))
    context = multiprocessing.get_context("fork")  # one that need not import everything
    holds = context.Event()
    process = context.Process(target=hold, args=(run.path, holds))
    process.start()
    assert holds.wait(60)
    yield run, process
    process.kill()
    process.join()


@pytest.mark.e2e
def test_two_processes_do_not_work_in_one_folder(other):
    run, process = other
    config = preset("digits", **TINY)
    cpu = torch.device("cpu")
    stages = [
        lambda: pretrain(config, run.path),
        lambda: protocols.probe(run, config, cpu),
        lambda: run_folder.evaluate(run, config, cpu),
        lambda: run_folder.evaluate_suite(run, config, cpu),
        lambda: export.export(run, config),
    ]
    for stage in stages:
        with pytest.raises(UsageError, match=f"process {process.pid} works in .*run; wait for it, or choose another"):
            stage()
    assert not run.encoder_file.exists()


@pytest.mark.e2e
def test_the_lock_of_a_process_that_was_killed_is_taken_over_with_a_notice(other, capsys):
    run, process = other
    process.kill()
    process.join()
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


@pytest.mark.ddp
def test_ranks_beside_the_first_leave_the_lock_to_it(other):
    run, _ = other
    with locked(run.path, first=False):
        pass


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_variables_of_a_launcher_do_not_open_a_locked_folder(other, name, monkeypatch):
    run, process = other
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = f"process {process.pid} works in .*; .* or set `devices` for the 2 processes that were launched together"
    with pytest.raises(UsageError, match=message), locked(run.path):
        pass


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with locked(tmp_path / "nowhere"):
        assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_created_is_locked_at_once(tmp_path):
    with locked(tmp_path / "new" / "run", create=True):
        assert (tmp_path / "new" / "run" / ".lock").read_text() == str(os.getpid())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written") as error, locked(tmp_path / "file" / "run", create=True):
        pass
    assert error.value.parameter == "out"


@pytest.mark.e2e
def test_every_stage_that_makes_a_folder_writes_under_the_lock(finished_run, tmp_path, monkeypatch):
    config, start, begun = RunDir(finished_run).read_config(), RunDir.start, []

    def started(run, *arguments):
        begun.append((run.path / ".lock").read_text() == str(os.getpid()))
        start(run, *arguments)

    monkeypatch.setattr(RunDir, "start", started)
    pretrain(config.replace(seed=5), tmp_path / "pretrained")
    transfer(RunDir(finished_run), RunDir(tmp_path / "transferred"), transferred(config, "digits_5_9"))
    plain = tmp_path / "plain.pt"
    torch.save(load_encoder(finished_run).backbone.state_dict(), plain)
    import_run(plain, RunDir(tmp_path / "imported"), config, layout="plain", normalization="none")
    assert begun == [True] * 3


@pytest.mark.e2e
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run = pretrain(preset("digits", **TINY | QUICK | {"epochs": 1}), tmp_path / "run")
    os.utime(run.encoder_file, (0, 0))
    assert pretrain(preset("digits", **TINY | QUICK | {"epochs": 1}), tmp_path / "run").encoder_file.is_file()


def in_another_thread(work):
    """What ``work`` returns or raises in a thread of its own."""
    found = []

    def catch():
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.e2e
@pytest.mark.parametrize("folder", ["run", "other"])
def test_a_second_thread_is_refused_before_anything_is_written_and_the_first_ends_as_alone(folder, tmp_path):
    config = preset("digits", **TINY | QUICK)
    whole = pretrain(config, tmp_path / "whole")
    found = []

    class Meanwhile(lightning.Callback):
        def on_train_batch_end(self, trainer, *_, **__):
            if trainer.global_step == 1:
                before = sorted(tmp_path.rglob("*"))
                run, cpu = RunDir(tmp_path / folder), torch.device("cpu")
                found.append(in_another_thread(lambda: pretrain(config, run.path)))
                found.append(in_another_thread(lambda: pipeline.run(config, run.path)))
                found.extend(
                    in_another_thread(lambda s=s: s(whole, config, cpu))
                    for s in (protocols.probe, run_folder.evaluate_suite)
                )
                assert sorted(tmp_path.rglob("*")) == before

    run = pretrain(config, tmp_path / "run", callbacks=Meanwhile())
    assert [type(error) for error in found] == [UsageError] * 4
    assert all("another thread" in str(error) for error in found)
    assert run.encoder_file.read_bytes() == whole.encoder_file.read_bytes()
    assert run.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert in_another_thread(lambda: pretrain(config, tmp_path / "later")).encoder_file.is_file()


@pytest.mark.e2e
def test_another_threads_private_numbers_do_not_disturb_a_training(tmp_path):
    """Such as those of ``load_encoder``, which builds a model."""
    config = preset("digits", **TINY | QUICK | {"epochs": 4})
    whole, done = pretrain(config, tmp_path / "whole"), threading.Event()

    def disturb():
        while not done.is_set():
            with seeding.isolated_rng(1):
                torch.rand(9)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        run = pretrain(config, tmp_path / "run")
    finally:
        done.set()
        thread.join()
    assert run.encoder_file.read_bytes() == whole.encoder_file.read_bytes()
