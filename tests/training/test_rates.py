"""Schedules of timm, rates by layer, and averages of the weights."""

import lightning
import pytest
import torch
from timm.scheduler import create_scheduler_v2

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingUnfinished, UsageError
from acl_plugin.runs.models import load_encoder
from acl_plugin.training.build import build
from acl_plugin.training.optimizer import create_optimizer
from acl_plugin.training.pretrain import pretrain
from acl_plugin.training.schedules import OF_TIMM, of_timm, rates
from conftest import TINY

SMALL = TINY | {"objective": "simclr"}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("step", {"decay_epochs": 3, "decay_rate": 0.5}), ("multistep", {"decay_milestones": [2, 7]}), ("poly", {}),
        ("tanh", {}), ("poly", {"decay_rate": 2.0}), ("tanh", {"min_lr": 0.1}),
        ("poly", {"min_lr": 0.1, "k_decay": 0.5}),
    ],
)  # fmt: skip
def test_a_schedule_of_timm_has_its_values_at_the_epochs(name, kwargs):
    c = preset("digits", schedule=name, schedule_kwargs=kwargs, epochs=10, warmup=0.2, lr=0.4).training
    rate = rates(c, 10)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    theirs, _ = create_scheduler_v2(optimizer, sched=name, num_epochs=10, **kwargs)
    for epoch in range(11):
        theirs.step(epoch)
        expected = optimizer.param_groups[0]["lr"] * min(1, epoch / 2)
        assert rate(0.4, epoch, 0.1) == pytest.approx(expected, abs=2e-6)  # timm's tanh ends at 1e-6 of the peak


@pytest.mark.parametrize(
    "kwargs", [{"milestones": [3]}, {"decay_milestones": "x"}, {"decay_milestones": [7, 2]}, {"decay_milestones": 3}]
)
def test_arguments_that_a_schedule_does_not_take_are_refused_before_training(kwargs, tmp_path):
    config = preset("digits", **SMALL, schedule="multistep", schedule_kwargs=kwargs)
    with pytest.raises(UsageError, match="schedule_kwargs|argument of schedule") as error:
        pretrain(config, tmp_path / "run")
    assert error.value.parameter == "schedule_kwargs"
    assert not (tmp_path / "run").exists()


def built(**options):
    config = preset("digits", **SMALL | options)
    return config, build(config, datasets.load(config.data))


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_rates_fall_with_the_layers_of_timm(backbone):
    own = {} if backbone == "resnet10t" else {"backbone": backbone, "backbone_kwargs": {"depth": 2, "embed_dim": 96}}
    config, module = built(layer_decay=0.5, lr=0.1, **own)
    groups = create_optimizer(config.training, module.objective.param_groups(module.model), module.model).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    trained = [p for p in module.model.parameters() if p.requires_grad]
    assert rate.keys() == {id(p) for p in trained}
    named = dict(module.model.backbone.named_parameters())
    first, *_, last = named
    assert rate[id(named[first])] < rate[id(named[last])] <= 0.1
    exponents = {round(torch.tensor(value / 0.1).log2().item(), 6) for value in rate.values()}
    assert all(value == int(value) for value in exponents)  # powers of the decay
    assert all(rate[id(p)] == 0.1 for p in module.model.projector.parameters())


class Follow(lightning.Callback):
    """The average of the weights by a plain loop beside the training."""

    def __init__(self, decay):
        self.decay, self.averages = decay, None

    def on_train_batch_end(self, trainer, module, *_):
        weights = [p.detach().clone() for p in module.model.backbone.parameters()]
        if self.averages is None:
            self.averages = weights
        self.averages = [self.decay * a + (1 - self.decay) * w for a, w in zip(self.averages, weights, strict=True)]


@pytest.mark.e2e
def test_the_average_of_the_weights_is_kept(tmp_path):
    config, follow = preset("digits", **SMALL, ema_decay=0.9), Follow(0.9)
    run = pretrain(config, tmp_path / "run", callbacks=[follow])
    plain = pretrain(config.replace(ema_decay=0.0), tmp_path / "plain")
    kept, last = (list(load_encoder(each.path).backbone.parameters()) for each in (run, plain))
    for found, expected in zip(kept, follow.averages, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(kept, last, strict=True))


@pytest.mark.e2e
def test_an_average_is_resumed_to_the_bit(tmp_path):
    config = preset("digits", **SMALL, ema_decay=0.9)
    whole = pretrain(config, tmp_path / "whole")
    with pytest.raises(TrainingUnfinished):
        pretrain(config, tmp_path / "stopped", max_steps=3)
    stopped = pretrain(config, tmp_path / "stopped")
    assert stopped.encoder_file.read_bytes() == whole.encoder_file.read_bytes()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("step", {"decay_epochs": 1, "decay_rate": -1}), ("step", {"decay_epochs": 0}), ("poly", {"k_decay": -1}),
        ("poly", {"min_lr": -0.1}), ("tanh", {"min_lr": "1"}),
        ("multistep", {"decay_rate": -1, "decay_milestones": [1]}),
    ],
)  # fmt: skip
def test_rates_that_cannot_be_trained_with_are_refused(name, kwargs):
    with pytest.raises(UsageError, match=f"`schedule` {name}: ") as error:
        of_timm(preset("digits", **SMALL | {"epochs": 4}, schedule=name, schedule_kwargs=kwargs).training)
    assert error.value.parameter == "schedule_kwargs"


@pytest.mark.parametrize("name", OF_TIMM)
def test_a_schedule_takes_just_the_arguments_that_change_its_rates(name):
    """The others of timm's function have no effect, or are draws of noise."""
    values = {
        "decay_epochs": 2, "decay_milestones": [1, 3], "decay_rate": 0.3, "min_lr": 0.01, "k_decay": 0.5,
        "cycle_mul": 2.0, "cycle_decay": 0.7, "cycle_limit": 2, "warmup_lr": 0.1, "warmup_prefix": True,
        "cooldown_epochs": 2, "patience_epochs": 2, "plateau_mode": "min",
        "noise": [0.5, 1], "noise_pct": 0.1, "noise_std": 2.0, "noise_seed": 1,
    }  # fmt: skip
    options = SMALL | {"epochs": 6, "lr": 0.1}
    for argument, value in values.items():
        kwargs = {argument: value}
        if argument in OF_TIMM[name]:
            more = {"decay_milestones": [2]} if name == "multistep" else {"decay_epochs": 3} if name == "step" else {}
            share = of_timm(preset("digits", **options, schedule=name, schedule_kwargs=more | kwargs).training)
            usual = of_timm(preset("digits", **options, schedule=name, schedule_kwargs=more).training)
            epochs = [quarter / 4 for quarter in range(25)]
            assert [share(at) for at in epochs] != [usual(at) for at in epochs], argument
        else:
            with pytest.raises(UsageError, match=f"unknown argument of schedule {name!r}: '{argument}'"):
                of_timm(preset("digits", **options, schedule=name, schedule_kwargs=kwargs).training)


@pytest.mark.parametrize("name", ["decay_t", "power", "decay_epoch", "optimizer", "num_epochs", "warmup_epochs"])
def test_an_argument_that_no_schedule_has_is_named_with_the_nearest(name):
    config = preset("digits", **SMALL, schedule="multistep", schedule_kwargs={name: 1})
    with pytest.raises(UsageError, match=f"unknown argument of schedule 'multistep': '{name}'; ") as error:
        of_timm(config.training)
    assert {"decay_milestones", "decay_rate"} <= set(error.value.allowed)
