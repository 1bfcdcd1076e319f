import csv
import json
import math
import os
import shutil
import signal

import lightning
import pytest
import torch
import yaml
from run_files import damage

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.objectives.base import Objective, Terms
from acl_plugin.objectives.branches import Momentum
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import read_model
from acl_plugin.training.build import build
from acl_plugin.training.callbacks import Checkpoints
from acl_plugin.training.guard import Guard
from acl_plugin.training.pretrain import pretrain
from acl_plugin.training.schedules import learning_rate, ramp
from conftest import QUICK, TINY


class Killed(Exception):
    pass


class StopAt(lightning.Callback):
    """Stands for a kill in the middle of an epoch."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed


class InterruptAt(StopAt):
    """SIGINT or SIGTERM in the middle of a step."""

    def __init__(self, epoch, batch, number=signal.SIGINT):
        super().__init__(epoch, batch)
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def healthy(monkeypatch):
    """Every step is worth a checkpoint; with so few images some look collapsed."""
    monkeypatch.setattr(Guard, "healthy", True)


def files(run):
    return read_model(run.encoder_file), run.metrics_file.read_text()


def same_weights(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "objective", ["dynacl", "deacl", "fare", "coreset"]
)  # a schedule and momentum, a teacher, a start, a part
def test_a_stopped_run_ends_as_an_undisturbed_one_to_the_bit(objective, tiny_config, tmp_path, options_of):
    own = options_of(objective)
    if objective == "coreset":
        own = {"objective": "gsa_rsl", "coreset": "rcs", "coreset_every": 3, "coreset_fraction": 0.8, "batch_size": 4}
    config = tiny_config.replace(**own, epochs=4, attack_steps=1)
    whole = pretrain(config, tmp_path / "whole")
    for epoch, batch in ((0, 1), (2, 1), (3, 0)):
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "stopped", callbacks=[StopAt(epoch, batch)])
    again = pretrain(config, tmp_path / "stopped")
    (spec, weights), metrics = files(whole)
    (other_spec, other_weights), other_metrics = files(again)
    assert spec == other_spec
    assert same_weights(weights, other_weights)
    assert metrics == other_metrics


@pytest.mark.e2e
def test_an_interrupted_run_keeps_the_step_and_resumes_after_it(tiny_config, tmp_path, healthy):
    """With a coreset and SIGTERM; the next test has all images and SIGINT."""
    own = {"coreset": "rcs", "coreset_every": 3, "coreset_fraction": 0.8}
    config = tiny_config.replace(**QUICK, **own, epochs=3, batch_size=4, accumulate_grad_batches=1)
    whole = pretrain(config, tmp_path / "whole")
    steps = []
    for at in ((0, 0), (0, 1), (1, 1)):
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "stopped", callbacks=[InterruptAt(*at, signal.SIGTERM)])
        checkpoint = torch.load(RunDir(tmp_path / "stopped").checkpoint_file, weights_only=True)
        steps.append(checkpoint["global_step"])
    per_epoch = 3
    first = steps[0]
    assert steps == [first, first + 1, steps[2]]
    assert first == 1
    assert steps[2] > steps[1] + per_epoch - 2
    again = pretrain(config, tmp_path / "stopped")
    (_, weights), metrics = files(whole)
    (_, other_weights), other_metrics = files(again)
    assert same_weights(weights, other_weights)
    assert metrics == other_metrics


@pytest.mark.e2e
def test_an_interruption_waits_for_the_end_of_an_accumulated_step_and_of_an_epoch(tiny_config, tmp_path, healthy):
    config = tiny_config.replace(**QUICK, epochs=3, batch_size=4, accumulate_grad_batches=2)
    whole = pretrain(config, tmp_path / "whole")
    for at, steps in (((0, 0), 1), ((0, 3), 3), ((2, 3), 6)):  # steps of two batches, two an epoch
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "stopped", callbacks=[InterruptAt(*at)])
        checkpoint = torch.load(RunDir(tmp_path / "stopped").checkpoint_file, weights_only=True)
        assert checkpoint["global_step"] == steps
    again = pretrain(config, tmp_path / "stopped")
    assert same_weights(files(whole)[0][1], files(again)[0][1])
    assert files(whole)[1] == files(again)[1]


@pytest.mark.e2e
def test_a_long_epoch_has_checkpoints_within(tiny_config, tmp_path, healthy, monkeypatch):
    config = tiny_config.replace(**QUICK, epochs=3, batch_size=4, accumulate_grad_batches=2)  # two steps an epoch
    whole = pretrain(config, tmp_path / "whole")
    monkeypatch.setattr(Checkpoints, "often", 0.0)
    for (epoch, batch), steps in (((0, 3), 1), ((1, 1), 2), ((2, 2), 5)):
        with pytest.raises(Killed):
            pretrain(config, tmp_path / "stopped", callbacks=[StopAt(epoch, batch)])
        checkpoint = torch.load(RunDir(tmp_path / "stopped").checkpoint_file, weights_only=True)
        assert checkpoint["global_step"] == steps
    again = pretrain(config, tmp_path / "stopped")
    assert same_weights(files(whole)[0][1], files(again)[0][1])
    assert files(whole)[1] == files(again)[1]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished run of ``tiny_config``; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "healthy", True)
        return pretrain(preset("digits", **TINY | QUICK), tmp_path_factory.mktemp("pretrained") / "run")


@pytest.fixture
def run(pretrained, tmp_path):
    return RunDir(shutil.copytree(pretrained.path, tmp_path / "run"))


@pytest.mark.e2e
def test_seed_decides_the_result(pretrained, tiny_config, tmp_path):
    weights = {}
    for name, seed in (("same", 0), ("other", 1)):
        torch.manual_seed(len(weights))  # the global state does not matter
        weights[name] = read_model(pretrain(tiny_config.replace(seed=seed), tmp_path / name).encoder_file)[1]
    one = read_model(pretrained.encoder_file)[1]
    assert same_weights(one, weights["same"])
    assert not same_weights(one, weights["other"])


@pytest.mark.e2e
def test_a_finished_run_is_left_alone_and_another_configuration_refused(run, tiny_config, tmp_path):
    (run.path / "environment.json").write_text("as it was")
    before = run.encoder_file.stat().st_mtime_ns
    pretrain(tiny_config, tmp_path / "run")
    assert run.encoder_file.stat().st_mtime_ns == before
    assert (run.path / "environment.json").read_text() == "as it was"
    with pytest.raises(UsageError, match=r"different settings \(`lr` 0.5, there 0.02\)"):
        pretrain(tiny_config.replace(lr=0.5), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and not a run folder"):
        pretrain(tiny_config, tmp_path / "full")


@pytest.mark.e2e
def test_a_run_killed_after_its_last_step_only_writes_the_encoder(run, tiny_config, tmp_path):
    (spec, weights), metrics = files(run)
    run.encoder_file.unlink()
    pretrain(tiny_config, tmp_path / "run")
    (other_spec, other_weights), other_metrics = files(run)
    assert spec == other_spec
    assert same_weights(weights, other_weights)
    assert metrics == other_metrics


@pytest.mark.e2e
def test_run_folder_holds_configuration_environment_metrics_and_checkpoint(run, finished_run):
    assert yaml.safe_load(run.config_file.read_text())["objective"]["objective"] == "acl_ds"
    assert run.checkpoint_file.is_file()
    assert list((run.path / "tensorboard").glob("events*"))
    rows = list(csv.DictReader(run.metrics_file.open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"loss", "nce_adv", "nce_clean", "attack_moved"} <= rows[0].keys()
    assert float(rows[0]["attack_moved"]) == 1.0
    assert not list(run.path.rglob("*.tmp"))
    of_gsa_rsl = list(csv.DictReader(RunDir(finished_run).metrics_file.open()))
    assert {"loss", "nce_adv", "nce_clean", "sharpness", "global_js", "attack_moved"} <= of_gsa_rsl[0].keys()


@pytest.mark.e2e
def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_checkpoint(register, tiny_config, tmp_path):
    class NaNAtStep3(SimCLR):
        calls = 0

        def terms(self, model, views, attack):
            terms = super().terms(model, views, attack)
            type(self).calls += 1
            return Terms(terms.total * math.nan, terms.parts) if self.calls == 4 else terms

    register("nan_at_step_3", NaNAtStep3)
    config = tiny_config.replace(objective="nan_at_step_3", epochs=3)
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step 3 \(nce_clean .*\); lower --lr"):
        pretrain(config, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    weights = torch.load(run.checkpoint_file, weights_only=True)["state_dict"]
    assert all(w.isfinite().all() for w in weights.values() if isinstance(w, torch.Tensor))
    assert torch.load(run.checkpoint_file, weights_only=True)["epoch"] == 0
    assert not run.encoder_file.exists()
    pretrain(config, tmp_path / "run")  # the cause is gone: the run goes on
    assert run.encoder_file.is_file()


@pytest.mark.e2e
def test_a_collapsed_run_stops_and_states_what_to_change(register, tiny_config, tmp_path):
    class Collapsed(SimCLR):
        def terms(self, model, views, attack):
            level = torch.tensor(math.log(2 * len(views.a) - 1))
            return Terms(0 * next(model.parameters()).sum() + level, {"mine": level}, {"mine": level.item()})

    register("collapsed", Collapsed)
    config = tiny_config.replace(objective="collapsed", epochs=20, eps_ramp=0.1)
    message = (
        r"collapsed: mine is 2.708 at step 23, as for equal embeddings \(2.708\); raise --eps-ramp .*--lr .*temperature"
    )
    with pytest.raises(TrainingStopped, match=message):
        pretrain(config, tmp_path / "run")
    # warm-up is 4 steps, 2 an epoch: the checkpoint is of the last epoch before the streak began
    assert torch.load(RunDir(tmp_path / "run").checkpoint_file, weights_only=True)["epoch"] == 1


@pytest.mark.e2e
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_leads_to_the_same_weights(
    run, tiny_config, capsys, damaged
):
    whole = run.encoder_file.read_bytes()
    assert torch.load(run.earlier_checkpoint_file, weights_only=True)["epoch"] < 1
    run.encoder_file.unlink()
    for path in (run.checkpoint_file, run.earlier_checkpoint_file)[:damaged]:
        damage(path)
    capsys.readouterr()
    pretrain(tiny_config, run.path)
    told = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(told) == damaged
    reason = "is damaged (a checksum is not right); resuming from the checkpoint before it"
    assert told[0] == f"{run.checkpoint_file} {reason}"
    assert run.encoder_file.read_bytes() == whole


@pytest.mark.e2e
def test_a_process_that_dies_between_two_checkpoints_resumes_from_the_one_before(run, tiny_config):
    whole = run.encoder_file.read_bytes()
    run.encoder_file.unlink()
    run.checkpoint_file.unlink()
    assert pretrain(tiny_config, run.path).encoder_file.read_bytes() == whole


@pytest.mark.e2e
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_process_that_dies_between_checkpoint_and_metrics_loses_no_row(tiny_config, tmp_path, epoch, monkeypatch):
    config = tiny_config.replace(**QUICK, epochs=3)
    monkeypatch.setattr(Guard, "healthy", True)  # so tiny an encoder may look collapsed, which puts a checkpoint off
    whole = pretrain(config, tmp_path / "whole")
    save, saved = Checkpoints._save, []

    def killed(self, trainer):
        save(self, trainer)
        saved.append(trainer.current_epoch)
        if len(saved) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "killed")
    run = RunDir(tmp_path / "killed")
    assert run.checkpoint_file.is_file()
    rows = run.metrics_file.read_text().splitlines()[1:] if run.metrics_file.is_file() else []
    assert len(rows) == epoch - 1
    pretrain(config, run.path)
    assert run.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert run.encoder_file.read_bytes() == whole.encoder_file.read_bytes()


@pytest.mark.e2e
def test_damaged_metrics_are_reported_before_the_first_step(run, tiny_config, tmp_path):
    run.encoder_file.unlink()
    for content in (b"", b"epoch,step\n", b"\x80", b"step\n1\n", b"epoch,step\nx,1\n"):
        run.metrics_file.write_bytes(content)
        with pytest.raises(UsageError, match=r"metrics.csv is damaged .*; delete it"):
            pretrain(tiny_config, tmp_path / "run")
        assert run.metrics_file.read_bytes() == content
    run.metrics_file.unlink()
    assert pretrain(tiny_config, tmp_path / "run").encoder_file.is_file()


@pytest.mark.e2e
def test_seconds_are_those_of_all_starts(run, tiny_config):
    once = json.loads(run.pretraining_file.read_text())
    assert not once["resumed"]
    checkpoint = torch.load(run.checkpoint_file, weights_only=True)
    assert 0 < checkpoint["seconds"] <= once["seconds"] + 0.1
    torch.save(checkpoint | {"seconds": 1000.0}, run.checkpoint_file)
    run.encoder_file.unlink()
    pretrain(tiny_config, run.path)
    again = json.loads(run.pretraining_file.read_text())
    assert again["resumed"]
    assert 1000 <= again["seconds"] < 1100


@pytest.mark.e2e
def test_real_training_does_not_look_collapsed(tiny_config, tmp_path):
    pretrain(tiny_config.replace(epochs=12, eps_ramp=0.0, lr=1e-3), tmp_path / "run")


@pytest.mark.e2e
@pytest.mark.parametrize("option", [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"optimizer": "lars"}])
def test_lightnings_and_timms_options_are_passed_through(option, tiny_config, tmp_path):
    run = pretrain(tiny_config.replace(**option, attack_steps=1), tmp_path / "run")
    assert all(w.isfinite().all() for w in read_model(run.encoder_file)[1].values())


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["byol", "moco", "dynacl", "3sat"])
def test_a_momentum_copy_follows_once_per_optimizer_step(name, tiny_config, tmp_path, monkeypatch):
    follow, moves = Momentum.follow, []

    def recorded(copy, model):
        before = [p.clone() for p in copy.encoder.parameters()]
        follow(copy, model)
        moves.append(any(not torch.equal(p, q) for p, q in zip(before, copy.encoder.parameters(), strict=True)))

    monkeypatch.setattr(Momentum, "follow", recorded)
    options = {"epochs": 2, "batch_size": 4, "accumulate_grad_batches": 2, "objective_kwargs": {"momentum": 0.5}}
    pretrain(tiny_config.replace(**QUICK, objective=name, **options), tmp_path / "run")
    assert moves == [False, False, True, False, True, False, True, False]  # at first, the copy is equal


@pytest.mark.parametrize(("name", "own"), [("dynacl", {}), ("gsa_rsl", {"base": "dynacl"})])
def test_an_average_of_weights_beside_a_copy_that_is_kept_is_refused(name, own, tiny_config):
    config = tiny_config.replace(objective=name, objective_kwargs=own, ema_decay=0.9)
    with pytest.raises(UsageError, match=r"`ema_decay` 0.9: objective .* keeps its own momentum copy") as error:
        build(config, datasets.load(config.data))
    assert error.value.parameter == "ema_decay"


@pytest.mark.e2e
def test_accumulated_gradients_are_averaged(register, tiny_config, tmp_path):
    class Linear(Objective):
        """Gradient 1 on each weight: one SGD step moves by the rate, however many batches are averaged."""

        def terms(self, model, views, attack):
            return Terms(sum(p.sum() for p in model.parameters()), {})

    register("linear", Linear)
    weights = {}
    for every in (1, 4):
        options = {"optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "epochs": 1, "batch_size": 4, "lr": 0.01}
        config = tiny_config.replace(objective="linear", accumulate_grad_batches=every, **options)
        run = pretrain(config, tmp_path / str(every))
        weights[every] = read_model(run.encoder_file)[1]["bn1.weight"]
    assert torch.allclose(1 - weights[4], torch.tensor(0.01 * 1.9 * learning_rate(0.75, 0)), atol=1e-6)
    assert (weights[1] < weights[4]).all()


def test_schedules():
    assert [ramp(p, 0.5) for p in (0.1, 0.25, 0.5, 1.0)] == [0.2, 0.5, 1.0, 1.0]
    assert ramp(0.01, 0.0) == 1.0
    assert learning_rate(0.05, 0.1) == 0.5
    assert learning_rate(0.1, 0.1) == 1.0
    assert learning_rate(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate(1.0, 0.1) == pytest.approx(0.0)
    assert learning_rate(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "simcrl"}, "unknown objective 'simcrl'"),
        ({"attack": "Square"}, "'Square' treats samples independently"),
        ({"attack": "TIFGSM"}, "takes images of 3 channels, not 1"),
        ({"eps": 0}, "`eps` 0"),
        ({"backbone": "resnt18"}, "unknown backbone"),
        ({"batch_size": 17}, "`batch_size` 17 on 1 device.*only 16 training images"),
        ({"objective": "gsa_rsl", "objective_kwargs": {"rho": -1}}, "rho -1"),
    ],
)
def test_nothing_is_written_for_a_run_that_cannot_start(options, message, tiny_config, tmp_path):
    with pytest.raises(UsageError, match=message):
        pretrain(tiny_config.replace(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
