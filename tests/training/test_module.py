"""The module under a plain ``lightning.Trainer``, without any of our own callbacks."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from acl_plugin.data import datasets
from acl_plugin.errors import TrainingUnfinished, UsageError
from acl_plugin.losses.contrastive import nt_xent
from acl_plugin.objectives.base import Objective, Terms
from acl_plugin.objectives.branches import embedding_size
from acl_plugin.objectives.schedules import warmup_then_cosine
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from acl_plugin.training.schedules import learning_rate
from conftest import QUICK

CORESET = {"coreset": "rcs", "coreset_every": 2, "coreset_fraction": 0.6, "coreset_warmup": 0.3}


def plain(config, folder, ckpt_path=None, **options):
    """Bytes of the encoder that a Trainer with ``options`` makes."""
    module = build(config, datasets.load(config.data))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    lightning.Trainer(default_root_dir=folder, **quiet | options).fit(module, ckpt_path=ckpt_path)
    run = RunDir(folder / "written")
    run.path.mkdir(parents=True, exist_ok=True)
    module.write_encoder(run)
    return run.encoder_file.read_bytes()


def ours(config, folder, epochs):
    return pretrain(config.replace(epochs=epochs), folder / f"ours{epochs}").encoder_file.read_bytes()


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(**QUICK, epochs=2, batch_size=4, accumulate_grad_batches=3)


@pytest.mark.e2e
@pytest.mark.parametrize("own", [CORESET | {"objective": "gsa_rsl"}, {"objective": "dynacl"}])
@pytest.mark.parametrize("epochs", [1, 4])
def test_any_number_of_epochs_gives_the_weights_of_our_own_trainer(own, epochs, config, tmp_path):
    config = config.replace(**own)
    assert plain(config, tmp_path, max_epochs=epochs) == ours(config, tmp_path, epochs)


@pytest.mark.e2e
def test_steps_or_time_decide_where_there_are_no_epochs(config, tmp_path):
    whole = ours(config, tmp_path, 2)  # two steps an epoch, of 3 batches and of 1
    assert plain(config, tmp_path / "steps", max_steps=4) == whole
    assert plain(config, tmp_path / "time", max_epochs=-1, max_time={"hours": 1}) == whole
    assert plain(config, tmp_path / "endless", max_epochs=-1) == whole


@pytest.mark.e2e
@pytest.mark.parametrize("own", [{}, CORESET])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_rate_reaches_its_end_after_max_steps(own, steps, config, tmp_path):
    """The schedule is that of the steps, though the last epoch is left within."""
    module = build(config.replace(**own, batch_size=2), datasets.load(config.data))
    rates = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_, **__):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    trainer = lightning.Trainer(
        max_epochs=-1, max_steps=steps, callbacks=[Rates()], default_root_dir=tmp_path, **quiet
    )  # fmt: skip
    trainer.fit(module)
    assert trainer.global_step == steps
    assert module.optimizer_steps() >= steps
    batches = len(rates)
    assert rates[-1] == pytest.approx(
        config.training.lr * learning_rate((batches - 1) / batches, config.training.warmup), abs=1e-3
    )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("own", "length"),
    [
        ({"objective": "gsa_rsl"}, {"max_epochs": 3}),
        (CORESET, {"max_steps": 10}),
        ({"objective": "dynacl", "attack": "free", "attack_steps": 2}, {"max_epochs": 3}),
    ],
)
def test_it_resumes_from_any_checkpoint_of_lightnings_own(own, length, config, tmp_path):
    config = config.replace(**own, accumulate_grad_batches=1)
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = plain(config, tmp_path, **length, callbacks=[keep])
    kept = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(kept) > 6
    for path in kept[:8:3]:  # within an epoch and at its end
        assert plain(config, tmp_path, path, **length) == whole


@pytest.mark.e2e
def test_a_free_attack_updates_several_times_on_each_batch(config, tmp_path, monkeypatch):
    config = config.replace(accumulate_grad_batches=1, attack="free", attack_steps=3, clip_grad_norm=1.0, ema_decay=0.9)
    module, updates = build(config, datasets.load(config.data)), []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda optimizer, closure=None: updates.append(module.trainer.global_step)
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(module)
    assert trainer.global_step == module.optimizer_steps() == 4
    assert updates == [batch for batch in range(4) for _ in range(3)]
    assert module.averaged.n_averaged == 12
    assert module.means.counts["loss"] == 12


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "own"), [("3sat", {"start": 0.5}), ("gsa_rsl", {"base": "3sat", "base_kwargs": {"start": 0.5}})]
)
def test_epochs_without_an_attack_train_once_on_each_batch(name, own, config, tmp_path):
    config = config.replace(
        objective=name, objective_kwargs=own, accumulate_grad_batches=1, attack="free", attack_steps=3
    )
    module, counts = build(config, datasets.load(config.data)), []

    class Count(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            counts.append(module.means.counts["loss"])

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    lightning.Trainer(max_epochs=2, callbacks=[Count()], default_root_dir=tmp_path, **quiet).fit(module)
    assert counts == [4, 12]


@pytest.mark.e2e
def test_a_second_fit_begins_as_new(config, tmp_path):
    module = build(config, datasets.load(config.data))
    seen = []

    class Means(lightning.Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append((pl_module.means.counts["loss"], pl_module.planned.training.epochs))

    for epochs in (1, 3, 1):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        lightning.Trainer(max_epochs=epochs, callbacks=[Means()], default_root_dir=tmp_path, **quiet).fit(module)
    assert seen == [(4, 1), (4, 3), (4, 1)]


@pytest.mark.e2e
@pytest.mark.parametrize("limit", [2, 0.5])
def test_part_of_an_epoch_is_an_epoch_of_its_own(limit, config, tmp_path):
    """With ``limit_train_batches`` the last batch of each epoch still makes a step."""
    module = build(config, datasets.load(config.data))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, limit_train_batches=limit, default_root_dir=tmp_path, **quiet)
    trainer.fit(module)
    assert trainer.global_step == module.optimizer_steps() == 2


@pytest.mark.e2e
def test_an_epoch_without_a_batch_is_refused(config, tmp_path):
    module = build(config, datasets.load(config.data))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=3, limit_train_batches=0.2, default_root_dir=tmp_path, **quiet)
    with pytest.raises(UsageError, match="`limit_train_batches` of the Trainer leaves no batch"):
        trainer.fit(module)


class Groups(SimCLR):
    """The projector at a tenth of the rate, without decay, and the stem not at all."""

    def param_groups(self, model):
        stem = list(model.backbone.conv1.parameters())
        rest = [p for p in model.backbone.parameters() if all(p is not s for s in stem)]
        return [
            {"params": rest},
            {"params": list(model.projector.parameters()), "lr": 0.002, "weight_decay": 0.0},
            {"params": stem, "lr": 0.0},
        ]


@pytest.mark.e2e
@pytest.mark.parametrize("optimizer", ["adamw", "lars", "lion"])
def test_a_group_keeps_its_own_rate_and_decay(optimizer, register, config, tmp_path):
    register("groups", Groups)
    config = config.replace(objective="groups", optimizer=optimizer, accumulate_grad_batches=1, epochs=2)
    seen = {}

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_, **__):
            groups = trainer.optimizers[0].param_groups
            seen[trainer.global_step] = [(group["lr"], group["weight_decay"]) for group in groups]

    pretrain(config, tmp_path / "whole", callbacks=Rates())
    whole, first = dict(seen), dict(build(config, datasets.load(config.data)).model.named_parameters())
    for step, groups in whole.items():
        share = learning_rate((step - 1) / 8, config.training.warmup)
        assert groups == [
            (config.training.lr * share, config.training.weight_decay),
            (0.002 * share, 0.0),
            (0.0, config.training.weight_decay),
        ]
    kept = torch.load(RunDir(tmp_path / "whole").checkpoint_file, weights_only=True)["state_dict"]
    matrices = {name: value for name, value in first.items() if value.dim() > 1}
    same = {name: torch.equal(kept[f"model.{name}"], value) for name, value in matrices.items()}
    assert {name for name in same if same[name]} == {name for name in same if name.startswith("backbone.conv1")}
    seen.clear()
    for _ in range(2):
        with pytest.raises(TrainingUnfinished):
            pretrain(config, tmp_path / "stopped", callbacks=Rates(), max_steps=3)
    pretrain(config, tmp_path / "stopped", callbacks=Rates(), max_steps=3)
    assert seen == whole
    assert (tmp_path / "stopped" / "encoder.pt").read_bytes() == (tmp_path / "whole" / "encoder.pt").read_bytes()


@pytest.mark.e2e
def test_a_step_leaves_the_random_state_around_it_alone(config, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pretrain(config, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_images_of_all_devices_is_refused(config):
    with pytest.raises(UsageError) as error:
        build(config.replace(batch_size=17), datasets.load(config.data))
    assert (error.value.parameter, error.value.given) == ("batch_size", 17)
    with pytest.raises(UsageError) as error:
        build(config.replace(**CORESET, devices=2), datasets.load(config.data))
    assert error.value.parameter == "coreset"


@pytest.mark.e2e
def test_the_last_partial_step_is_made(register, config, tmp_path):
    """Gradient 1 on each weight: four batches in steps of three and one move by the sum of two rates."""

    class Linear(Objective):
        def terms(self, model, views, attack):
            return Terms(sum(p.sum() for p in model.parameters()), {})

    register("linear", Linear)
    options = {"optimizer": "lion", "weight_decay": 0.0, "warmup": 0.0, "epochs": 1, "lr": 0.01}
    config = config.replace(objective="linear", **options)
    run = pretrain(config, tmp_path / "run")
    weight = torch.load(run.encoder_file, weights_only=True)["weights"]["bn1.weight"]
    moved = 0.01 * (learning_rate(0.5, 0) + learning_rate(0.75, 0))
    assert torch.allclose(1 - weight, torch.tensor(moved), atol=1e-6)


@pytest.mark.e2e
def test_the_schedule_of_gsa_rsl_warms_up_by_step_and_falls_by_epoch(config, tmp_path):
    config = config.replace(schedule="cosine_by_epoch", warmup=0.25, epochs=4, accumulate_grad_batches=1)
    seen = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, *_, **__):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    pretrain(config, tmp_path / "run", callbacks=Rates())
    steps = len(seen) // 4
    assert seen == [warmup_then_cosine(step / steps, 4, config.training.lr, 1) for step in range(4 * steps)]
    assert len(set(seen)) == steps + 3


class Predicting(Objective):
    """A contrast of the predictions of a network of its own."""

    def setup(self, model):
        self.predictor = torch.nn.Linear(embedding_size(model), 4)
        self.modes = []

    def terms(self, model, views, attack):
        self.modes.append([module.training for module in (model, model.backbone.bn1, self.predictor)])
        terms = Terms.weighted(nce=(1.0, nt_xent(*map(self.predictor, self.embeddings(model, views)))))
        model.eval()
        self.predictor.eval()
        return terms

    def embeddings(self, model, views):
        return model.views(views.a, views.b)


class Frozen(Predicting):
    """The same, of embeddings without gradient."""

    @torch.no_grad()
    def embeddings(self, model, views):
        return super().embeddings(model, views)


@pytest.mark.e2e
def test_modes_of_a_step_are_not_those_of_the_step_before_and_own_parameters_are_trained(register, config, tmp_path):
    register("predicting", Predicting)
    module = build(config.replace(objective="predicting", epochs=1), datasets.load(config.data))
    module.model.backbone.bn1.eval()  # frozen on purpose
    before = module.objective.predictor.weight.detach().clone()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    lightning.Trainer(default_root_dir=tmp_path, max_epochs=1, **quiet).fit(module)
    assert module.objective.modes == [[True, False, True]] * 4
    assert not torch.equal(module.objective.predictor.weight, before)


@pytest.mark.e2e
@pytest.mark.parametrize("accumulated", [1, 3])
def test_an_objective_that_trains_no_weight_of_the_encoder_is_refused(register, config, tmp_path, accumulated):
    register("frozen", Frozen)
    config = config.replace(objective="frozen", epochs=1, accumulate_grad_batches=accumulated)
    with pytest.raises(UsageError, match="objective 'frozen' gives no weight of the encoder a gradient") as error:
        pretrain(config, tmp_path / "run")
    assert (error.value.parameter, error.value.given) == ("objective", "frozen")
