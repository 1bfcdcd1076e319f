"""More epochs for a run: finished, unfinished, evaluated."""

import pytest

from acl_plugin import pipeline
from acl_plugin.errors import TrainingUnfinished, UsageError
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
