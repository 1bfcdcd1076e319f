import json
import signal
import time

import pytest

import benchmarks.__main__ as main
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.signals import deferred
from benchmarks import compact, record
from benchmarks.tables import cost, page
from conftest import TINY

SHARED = {k: v for k, v in TINY.items() if k not in ("epochs", "objective")}
OPTIONS = [f"--options.{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in SHARED.items()]


def command(tmp_path, *more):
    where = ["record", "--data", "digits_val", "--out", str(tmp_path / "record"), "--teacher-epochs", "2"]
    return [*where, "--student-epochs", "2", *OPTIONS, *more]


@pytest.mark.e2e
def test_a_record_is_trained_probed_attacked_and_kept_also_after_the_time_was_up(results, few, capsys):
    own = ["--teacher-options.objective_kwargs", '{"temperature": 0.2}', "--student-options.attack_steps", "2"]
    assert main.main(command(results, *own, "--minutes", "0.0001")) == 0
    assert "stopped after 0.0001 minutes; the same command goes on" in capsys.readouterr().err
    assert not list((results / "results").iterdir())
    assert main.main(command(results, *own)) == 0
    kept = compact.read(results / "results" / "record_digits_val_cpu.json")
    student = RunDir(results / "record" / "student")
    assert kept["evaluation"] == json.loads(student.evaluation_file.read_text())
    assert kept["training_seconds"] == pytest.approx(sum(kept["seconds"].values()))
    assert set(kept["seconds"]) == {"teacher", "student", "probe"}
    assert kept["settings"]["student"]["objective_kwargs"] == {"teacher": "teacher"}
    assert kept["settings"]["teacher"]["objective_kwargs"] == {"temperature": 0.2}
    assert "s of training on" in capsys.readouterr().out
    told = (results / "RESULTS.md").read_text()
    assert "## Against the clock on digits_val" in told
    assert f"resnet10t, {TINY['backbone_kwargs']}, SimCLR for 2 epochs, then profeat for 2 (2 steps of PGD)" in told


def test_the_alarm_is_an_interrupt_and_is_taken_back():
    before, before_term = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), record.stopped_after(0.0005):
        time.sleep(5)
    with record.stopped_after(10):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getsignal(signal.SIGTERM) == before_term
    with record.stopped_after(None):
        pass


def test_mistakes_are_reported_and_nothing_is_written(results, capsys):
    assert main.main(["record", "--out", str(results / "record")]) == 2
    assert "cifar10 needs --data-dir" in capsys.readouterr().err
    assert not (results / "record").exists()
    assert page.QUESTIONS["How much does it cost?"]["record_"] is cost.record


@pytest.mark.e2e
def test_the_time_can_be_up_after_a_pretraining_has_ended():
    with pytest.raises(KeyboardInterrupt), record.stopped_after(0.005):
        with deferred():
            pass
        time.sleep(5)
        pytest.fail("not stopped")


@pytest.mark.e2e
def test_the_time_can_be_up_in_a_pretraining_which_ends_its_step():
    with pytest.raises(KeyboardInterrupt), record.stopped_after(0.005), deferred() as interrupted:
        while not interrupted():
            time.sleep(0.01)
