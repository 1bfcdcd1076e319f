"""More epochs for a run: finished, unfinished, evaluated."""

import shutil

import pytest
from run_files import contents

from acl_plugin import pipeline
from acl_plugin.errors import TrainingUnfinished, UsageError
from acl_plugin.runs import growth
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runtime.files import read_json
from acl_plugin.training.pretrain import pretrain


@pytest.mark.e2e
def test_a_finished_run_goes_on_and_keeps_what_it_had(tiny_config, tmp_path, few, caplog):
    out = tmp_path / "run"
    first = pipeline.run(tiny_config, out)
    before = weights_hash(load_classifier(out))
    second = pipeline.run(tiny_config.replace(epochs=4), out)
    run, kept = RunDir(out), RunDir(out / "after-2-epochs")
    assert "grows from 2 to 4 epochs; the results so far are in after-2-epochs" in caplog.text
    assert len(run.metrics_file.read_text().splitlines()) == 1 + 4
    assert read_json(run.pretraining_file)["grown_from"] == [2]
    assert run.read_config().training.epochs == 4
    assert second["weights_sha256"] == weights_hash(load_classifier(out)) != before
    assert read_json(kept.evaluation_file) == first
    assert weights_hash(load_classifier(kept.path)) == before
    script = next(run.robustbench_folder.rglob("repeat.sh")).read_text()
    assert "planned for 2 epochs at first" in script
    assert pipeline.run(tiny_config.replace(epochs=4), out) == second
    with pytest.raises(UsageError, match=r"`epochs` 2, there 4"):  # and not fewer
        pipeline.run(tiny_config, out)
    pipeline.pretrain(tiny_config, out, overwrite=True)
    assert not kept.path.exists()


@pytest.mark.e2e
def test_an_unfinished_run_grows_and_repeats_to_the_bit(tiny_config, tmp_path):
    whole = []
    for out in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(TrainingUnfinished):
            pretrain(tiny_config, out, max_steps=1)
        whole.append(pretrain(tiny_config.replace(epochs=3), out))
    assert len({run.encoder_file.read_bytes() for run in whole}) == 1
    assert read_json(whole[0].pretraining_file)["grown_from"] == [2]
    assert not (tmp_path / "a" / "after-2-epochs").exists()


@pytest.mark.e2e
def test_other_options_are_still_refused_and_checkpoints_needed(tiny_config, tmp_path):
    out = tmp_path / "run"
    run = pretrain(tiny_config, out)
    with pytest.raises(UsageError, match=r"different settings \(`lr` 0.5"):
        pretrain(tiny_config.replace(epochs=4, lr=0.5), out)
    for checkpoint in (run.checkpoint_file, run.earlier_checkpoint_file):
        checkpoint.unlink(missing_ok=True)
    with pytest.raises(UsageError, match="no checkpoint to go on from"):
        pretrain(tiny_config.replace(epochs=4), out)
    assert run.encoder_file.is_file()


class Killed(Exception):
    pass


def kill_at(monkeypatch, count):
    """Stop before a write or move; return the list of those that were done."""
    done = []

    def counted(function):
        def stopping(*arguments):
            if len(done) == count:
                raise Killed
            done.append(function.__name__)
            function(*arguments)

        return stopping

    for name in ("write_json", "write_atomic", "_move"):
        monkeypatch.setattr(growth, name, counted(getattr(growth, name)))
    return done


@pytest.mark.e2e
def test_a_growth_that_was_killed_anywhere_is_completed_or_taken_back(finished_run, tmp_path):
    whole = RunDir(shutil.copytree(finished_run, tmp_path / "whole"))
    epochs = whole.read_config().training.epochs
    with pytest.MonkeyPatch.context() as patched:
        done = kill_at(patched, None)
        growth.grow(whole, epochs, 9)
    assert {"write_json", "write_atomic", "_move"} <= set(done)
    record = read_json(RunDir(finished_run).pretraining_file)
    for count in range(len(done)):
        run = RunDir(shutil.copytree(finished_run, tmp_path / f"killed-{count}"))
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
            kill_at(patched, count)
            growth.grow(run, epochs, 9)
        if run.encoder_file.is_file():  # as it was
            for part in (run.projector_file, run.classifier_file, run.evaluation_file):
                assert part.is_file()
            assert read_json(run.pretraining_file) == record
        again = RunDir(shutil.copytree(run.path, tmp_path / f"again-{count}"))
        growth.grow(again, epochs, 9)
        assert contents(again.path) == contents(whole.path)
    # the command before, after the last of these kills, completes the run as it was
    assert not run.encoder_file.is_file()
    pretrain(run.read_config(), run.path)
    found = read_json(run.pretraining_file)
    assert "grown_from" not in found
    assert found["epochs"] == record["epochs"]
    assert run.encoder_file.read_bytes() == RunDir(finished_run).encoder_file.read_bytes()
    assert run.projector_file.is_file()
