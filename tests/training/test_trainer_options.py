from datetime import timedelta

import lightning
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from acl_plugin.errors import TrainingUnfinished, UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.training import trainer_options
from acl_plugin.training.pretrain import pretrain
from acl_plugin.training.trainer_options import FREE, create_trainer, signature_defaults
from conftest import QUICK

OTHER = {
    "accelerator": "tpu", "strategy": "ddp", "devices": 2, "num_nodes": 2, "precision": "bf16-mixed",
    "logger": False, "callbacks": lightning.Callback(), "fast_dev_run": True, "max_epochs": 1, "min_epochs": 5,
    "max_steps": 2, "min_steps": 9, "max_time": {"microseconds": 1}, "limit_train_batches": 1,
    "limit_val_batches": 1, "limit_test_batches": 1, "limit_predict_batches": 1, "overfit_batches": 1,
    "val_check_interval": 0.5, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 3,
    "enable_checkpointing": False, "enable_progress_bar": True, "enable_model_summary": True,
    "accumulate_grad_batches": 3, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value",
    "deterministic": True, "benchmark": True, "inference_mode": False, "use_distributed_sampler": False,
    "profiler": "simple", "detect_anomaly": True, "barebones": True, "plugins": [], "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 1, "default_root_dir": "elsewhere", "enable_autolog_hparams": False,
    "model_registry": "mine",
}  # fmt: skip
"""A value for every option that is not what a pretraining uses. A later Lightning with more options needs more."""


@pytest.fixture
def config(tiny_config):
    """Four batches an epoch, and three steps: the last of them from one batch."""
    return tiny_config.replace(**QUICK, epochs=2, batch_size=4, accumulate_grad_batches=2, limit_train=12)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Bytes of encoder and metrics, by configuration."""
    known = {}

    def train(config):
        if str(config) not in known:
            run = pretrain(config, tmp_path_factory.mktemp("undisturbed") / "run")
            known[str(config)] = run.encoder_file.read_bytes(), run.metrics_file.read_bytes()
        return known[str(config)]

    return train


def resumed(config, out, starts=12, **options):
    """How often the same call stopped early before it was done."""
    run, done = RunDir(out), [-1]
    for stops in range(starts):
        try:
            pretrain(config, out, **options)
        except TrainingUnfinished as error:
            done.append(error.done)
        else:
            assert done == sorted(set(done))
            return stops
        assert run.checkpoint_file.is_file()
        assert not run.encoder_file.exists()
        assert not run.pretraining_file.exists()
    raise AssertionError("never done")


STOPPING = {"max_time": 3, "max_steps": 1}
"""Options that stop a training, and how often."""


@pytest.mark.e2e
@pytest.mark.parametrize("names", [*([name] for name in STOPPING), sorted(FREE - STOPPING.keys())], ids=" ".join)
def test_every_option_that_is_passed_on_keeps_the_weights(names, config, undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDir(tmp_path / "run")
    stops = resumed(config, run.path, **{name: OTHER[name] for name in names})
    assert stops == sum(STOPPING.get(name, 0) for name in names)
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)


@pytest.mark.parametrize("name", sorted(signature_defaults().keys() - FREE))
def test_every_other_option_is_refused(name, config, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(UsageError) as error:
        pretrain(config, run.path, **{name: OTHER[name]})
    assert (error.value.parameter, error.value.given) == (name, OTHER[name])
    assert not run.path.exists()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "options",
    [
        {"logger": True},
        {
            "callbacks": callbacks.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, save_last=True),
            "logger": "one",
        },
        {
            "callbacks": (callbacks.LearningRateMonitor(), callbacks.Timer()),
            "enable_checkpointing": True,
            "logger": [],
        },
        {
            "callbacks": None,
            "logger": None,
            "max_epochs": 2,
            "devices": 1,
            "accumulate_grad_batches": 2,
            "limit_train_batches": None,
            "max_steps": -1,
            "fast_dev_run": False,
            "overfit_batches": 0.0,
        },
    ],
)
def test_options_are_added_to_ours_or_repeat_them(options, config, undisturbed, tmp_path):
    if options.get("logger") == "one":
        options = options | {"logger": CSVLogger(tmp_path / "logs")}
    run = pretrain(config, tmp_path / "run", **options)
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)
    assert list((run.path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"max_stepz": 3}, "max_stepz"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": True}, "max_steps"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"max_time": "soon"}, "max_time"),
        ({"profiler": "none such"}, "profiler"),
        ({"callbacks": [3]}, "callbacks"),
        ({"callbacks": callbacks.StochasticWeightAveraging(0.1)}, "callbacks"),
        ({"logger": "wandb"}, "logger"),
        ({"max_time": -1}, "max_time"),
        ({"max_time": {"hours": 0}}, "max_time"),
        ({"max_time": timedelta(-1)}, "max_time"),
        ({"max_time": "00:00:00:00"}, "max_time"),
        ({"max_time": {"minutes": "5"}}, "max_time"),
        ({"max_time": {"fortnights": 1}}, "max_time"),
        ({"log_every_n_steps": "a"}, "log_every_n_steps"),
        ({"detect_anomaly": "yes"}, "detect_anomaly"),
        *(({name: value}, name) for name in sorted(FREE) for value in (1.5, [1], object())),
    ],
)
def test_what_cannot_be_passed_on_is_refused_before_anything_is_written(options, parameter, config, tmp_path):
    with pytest.raises(UsageError) as error:
        pretrain(config, tmp_path / "run", **options)
    assert error.value.parameter == parameter
    assert not (tmp_path / "run").exists()


def test_the_advice_names_an_option_of_the_configuration(config, tmp_path):
    with pytest.raises(UsageError, match="`gradient_clip_val` 1.0: .*; set `clip_grad_norm` of the configuration"):
        pretrain(config, tmp_path / "run", gradient_clip_val=1.0)


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_a_finished_run_does_not_take_an_accelerator_that_is_not_there(finished_run):
    run = RunDir(finished_run)
    before = run.config_file.read_bytes()
    with pytest.raises(UsageError, match="`accelerator` gpu"):
        pretrain(run.read_config().replace(accelerator="gpu"), finished_run)
    assert run.config_file.read_bytes() == before


@pytest.mark.e2e
def test_options_in_the_environment_change_nothing(config, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "1")
    run = pretrain(config, tmp_path / "run")
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)


class StopAt(lightning.Callback):
    """Sets ``should_stop`` in one hook, the second time that it is called."""

    def __init__(self, hook, at=2):
        self.calls = 0

        def stop(trainer, *_, **__):
            self.calls += 1
            if self.calls == at:
                trainer.should_stop = True

        setattr(self, hook, stop)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("hook", "every"),
    [
        ("on_train_start", 2),
        ("on_train_epoch_start", 2),
        ("on_train_batch_start", 2),
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 2),
        ("on_train_epoch_end", 2),
    ],
)
def test_whoever_stops_the_training_it_is_not_done_and_resumes(hook, every, config, undisturbed, tmp_path):
    config = config.replace(epochs=3, accumulate_grad_batches=every, checkpoint_every=3)
    at = 1 if hook == "on_train_start" else 2
    with pytest.raises(TrainingUnfinished) as error:
        pretrain(config, tmp_path / "run", callbacks=StopAt(hook, at))
    assert error.value.total == 3 * (3 if every == 1 else 2)
    assert (error.value.done > 0) == (hook != "on_train_start")
    assert not RunDir(tmp_path / "run").encoder_file.exists()
    run = pretrain(config, tmp_path / "run")
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)


class Leave(lightning.Callback):
    """What Lightning takes for the end of an epoch."""

    left = False

    def on_train_batch_end(self, trainer, *_, **__):
        if not self.left:
            self.left = True
            raise StopIteration


@pytest.mark.e2e
def test_an_epoch_that_was_left_is_not_counted(config, undisturbed, tmp_path):
    with pytest.raises(TrainingUnfinished):
        pretrain(config, tmp_path / "run", callbacks=Leave())
    run = pretrain(config, tmp_path / "run")
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)


@pytest.mark.e2e
def test_early_stopping_leaves_a_run_that_resumes(config, undisturbed, tmp_path):
    config = config.replace(epochs=3, checkpoint_every=3)
    stopping = callbacks.EarlyStopping("loss", mode="max", patience=1, stopping_threshold=-1.0)  # after each epoch
    with pytest.raises(TrainingUnfinished) as error:
        pretrain(config, tmp_path / "run", callbacks=[stopping])
    assert error.value.done == 2
    run = pretrain(config, tmp_path / "run")
    assert (run.encoder_file.read_bytes(), run.metrics_file.read_bytes()) == undisturbed(config)


def test_more_devices_than_there_are_is_the_users_mistake(monkeypatch):
    def refuse(**options):
        raise MisconfigurationException("You requested gpu: [0, 1]\n But your machine only has: [0]")

    monkeypatch.setattr(lightning, "Trainer", refuse)
    monkeypatch.setattr(trainer_options, "signature_defaults", dict)
    with pytest.raises(UsageError, match=r"`devices` 2: .* only has: \[0\]") as refused:
        create_trainer({"devices": 2}, [])
    assert refused.value.parameter == "devices"
