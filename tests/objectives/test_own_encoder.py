"""Every objective trains a module of the user's own: in a bare loop, in a plain Trainer of Lightning, and in ours."""

from contextlib import nullcontext

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import acl_plugin
from acl_plugin import available, create_objective, load_encoder, wrap_encoder
from acl_plugin.config import preset
from acl_plugin.errors import TrainingUnfinished, UsageError
from acl_plugin.objectives.base import Views
from acl_plugin.runs import own_encoder
from acl_plugin.runs.models import read_model, read_projector
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

SHAPE = (1, 8, 8)


class Tiny(nn.Module):
    """A network that timm does not know, with a head that is of no use here, which keeps what it computes."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3, bias=False)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        self.maps = self.stem(x)
        self.kept = {"pooled": [self.maps.mean((2, 3))]}
        return self.head(*self.kept["pooled"])


def configured(config):
    return create_objective(config.objective.objective, **config.objective.objective_kwargs)


def wrapped(objective, seed=0, **settings):
    torch.manual_seed(seed)
    given = {"features": "stem", "input_range": (-1, 1), "normalized": objective.normalized, **settings}
    return wrap_encoder(Tiny(), SHAPE, norm_banks=objective.norm_banks, projector=objective.projector, **given)


@pytest.fixture
def needed():
    """What an objective cannot do without, as objects, for a module of one's own."""

    def settings(name):
        if name in ("deacl", "profeat"):
            return {"teacher": wrapped(create_objective("simclr"), seed=1)}
        return {"pseudo_labels": torch.stack([torch.arange(16) % 2, torch.arange(16) % 5])} if name in LABELLED else {}

    return settings


LABELLED = ("advcl", "a_infonce")


def of_batch(x):
    return Views(x, x.flip(3), images=x, rows=torch.arange(len(x)), weak=x.flip(2))


def weights(encoder):
    return {name: value.detach().clone() for name, value in encoder.named_parameters()}


def check_trained(encoder, before):
    after = weights(encoder)
    assert all(value.isfinite().all() for value in after.values())
    assert all(value.isfinite().all() for value in encoder.buffers())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.module.stem.0") for name in moved)
    assert not any("head" in name for name in moved)


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_in_a_bare_loop(name, attack, needed):
    objective = create_objective(name, **needed(name))
    encoder = wrapped(objective)
    objective.setup(encoder)
    optimizer = torch.optim.AdamW(objective.param_groups(encoder), lr=1e-2)
    before = weights(encoder)
    for epoch in range(2):
        objective.on_epoch(epoch, 2)
        x = torch.rand(6, *SHAPE)
        optimizer.zero_grad()
        terms = objective.backward(encoder, of_batch(x), attack)
        optimizer.step()
        assert terms.total.isfinite()
    check_trained(encoder, before)
    kept = objective.downstream(encoder)
    assert kept.features(x, objective.norm_banks[-1]).shape == (6, 8)
    assert kept.unwrap(objective.norm_banks[-1]).state_dict().keys() == Tiny().state_dict().keys()


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_losses_are_float32_where_networks_are_bfloat16(name, attack, needed):
    objective = create_objective(name, **needed(name))
    encoder = wrapped(objective)
    objective.setup(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective.terms(encoder, of_batch(torch.rand(6, *SHAPE)), attack)
    assert {each.dtype for each in (terms.total, *terms.parts.values())} == {torch.float32}


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_in_double_precision(name, attack, needed):
    given = {key: each.double() if isinstance(each, nn.Module) else each for key, each in needed(name).items()}
    objective = create_objective(name, **given)
    encoder = wrapped(objective).double()
    objective.setup(encoder)
    terms = objective.backward(encoder, of_batch(torch.rand(6, *SHAPE, dtype=torch.float64)), attack)
    assert terms.total.dtype == torch.float64
    assert terms.total.isfinite()


class Contrastive(lightning.LightningModule):
    """An objective on an encoder, in Lightning's own terms."""

    def __init__(self, encoder, objective, attack):
        super().__init__()
        self.automatic_optimization = False
        self.encoder, self.objective, self.attack = encoder, objective, attack

    def configure_optimizers(self):
        return torch.optim.AdamW(self.objective.param_groups(self.encoder), lr=1e-2)

    def on_train_epoch_start(self):
        self.objective.on_epoch(self.current_epoch, self.trainer.max_epochs)

    def training_step(self, batch):
        x, rows = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        views = Views(x, x.flip(3), images=x, rows=rows, weak=x.flip(2))
        terms = self.objective.backward(self.encoder, views, self.attack)
        optimizer.step()
        self.log_dict({"loss": terms.total, **terms.parts})


@pytest.mark.e2e
@pytest.mark.parametrize(
    "name", ["simclr", "gsa_rsl", "3sat"]
)  # with one gradient a step, two, and epochs without attack
def test_in_a_plain_trainer(name, attack, needed, tmp_path):
    objective = create_objective(name, **needed(name))
    encoder = wrapped(objective)
    objective.setup(encoder)
    before = weights(encoder)
    data = DataLoader(TensorDataset(torch.rand(16, *SHAPE), torch.arange(16)), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, default_root_dir=tmp_path, **quiet)
    trainer.fit(Contrastive(encoder, objective, attack), data)
    assert trainer.global_step == 4
    assert trainer.callback_metrics["loss"].isfinite()
    check_trained(encoder, before)


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(epochs=2, keep_every=1, lr=1e-2)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["acl_ds", "advcl", "deacl", "dynacl"])  # with two banks, labels, teacher, momentum
def test_in_our_trainer(name, config, needed, tmp_path, labels_file, monkeypatch):
    settings = {"pseudo_labels": str(labels_file)} if name in LABELLED else {}
    if name in ("deacl", "profeat"):  # a teacher of one's own: a registered objective that has it
        teacher = needed(name)["teacher"]
        monkeypatch.setattr(acl_plugin.training.build, "load_encoder", lambda path: teacher)
        settings = {"teacher": "own"}
    config = config.replace(objective=name, objective_kwargs=settings)
    encoder = wrapped(create_objective(name))
    before = weights(encoder)
    run = pretrain(config, tmp_path / "run", encoder=encoder)
    assert all(torch.equal(value, before[key]) for key, value in weights(encoder).items())
    kept = load_encoder(run.path, encoder=encoder)
    assert not kept.training
    check_trained_alone = {key: value for key, value in kept.backbone.named_parameters() if "stem" in key}
    assert any(
        not torch.equal(v, w) for v, w in zip(check_trained_alone.values(), Tiny().stem.parameters(), strict=True)
    )
    spec, saved = read_model(run.encoder_file)
    assert spec.backbone.endswith(".Tiny")
    assert saved.keys() == {f"module.{key}" for key in Tiny().state_dict()}
    assert read_projector(run)[0] == create_objective(name).projector
    x = torch.rand(3, *SHAPE)
    assert kept(x).isfinite().all()
    assert all(torch.equal(value, saved[key]) for key, value in kept.backbone.state_dict().items())
    if run.benign_encoder_file.is_file():
        assert not torch.equal(load_encoder(run.path, benign=True, encoder=encoder).features(x), kept.features(x))


@pytest.mark.e2e
def test_an_interrupted_run_of_ones_own_encoder_resumes_with_the_same_weights(config, tmp_path):
    encoder = wrapped(configured(config))
    whole = pretrain(config, tmp_path / "whole", encoder=encoder)
    with pytest.raises(TrainingUnfinished):
        pretrain(config, tmp_path / "stopped", encoder=encoder, max_steps=1)
    other = wrapped(configured(config), seed=5)  # the checkpoint has the weights
    again = pretrain(config, tmp_path / "stopped", encoder=other)
    one, two = (read_model(run.encoder_file)[1] for run in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.e2e
def test_another_network_does_not_resume_a_run(config, tmp_path):
    with pytest.raises(TrainingUnfinished):
        pretrain(config, tmp_path / "run", encoder=wrapped(configured(config)), max_steps=1)
    torch.manual_seed(0)
    objective = configured(config)
    options = {"norm_banks": objective.norm_banks, "projector": objective.projector, "features": "stem"}
    with pytest.raises(
        UsageError, match="`encoder` is another network than that which .*run was started with"
    ) as error:
        pretrain(config, tmp_path / "run", encoder=wrap_encoder(Tiny(4), SHAPE, **options))
    assert error.value.parameter == "encoder"


@pytest.mark.e2e
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", ["mean", "normalized", "width", "projector", "weights"])
def test_another_encoder_is_not_that_of_a_run(finished, change, tmp_path, caplog):
    """Whether the run is finished, which returned its old result, or not, which took the checkpoint's buffers."""
    config = preset("digits", **TINY | {"objective": "simclr"})

    def encoder(change="", seed=0):
        torch.manual_seed(seed + (change == "weights"))
        given = {"mean": 0.5, "std": 0.25, "normalized": change == "normalized", "features": "stem"}
        given |= {"mean": 0.1} if change == "mean" else {}
        given |= {"projector": "mlp_8_4" if change == "projector" else configured(config).projector}
        return wrap_encoder(Tiny(5) if change == "width" else Tiny(), SHAPE, **given)

    with nullcontext() if finished else pytest.raises(TrainingUnfinished):
        pretrain(config, tmp_path / "run", encoder=encoder(), **{} if finished else {"max_steps": 1})
    pretrain(config, tmp_path / "run", encoder=encoder())
    assert "other weights" not in caplog.text
    if change == "weights":
        pretrain(config, tmp_path / "run", encoder=encoder(change))
        assert "`encoder` has other weights than" in caplog.text
        return
    with pytest.raises(UsageError, match="`encoder` is another network than that which .*run was started with"):
        pretrain(config, tmp_path / "run", encoder=encoder(change))
    pretrain(config, tmp_path / "run", encoder=encoder(change), overwrite=True)


@pytest.mark.e2e
def test_another_projector_is_named_and_recorded(config, tmp_path, caplog):
    objective = configured(config)
    pretrain(config, tmp_path / "same", encoder=wrapped(objective))
    assert "the encoder's is trained" not in caplog.text
    encoder = wrap_encoder(Tiny(), SHAPE, norm_banks=objective.norm_banks, projector="mlp_8_4", features="stem")
    run = pretrain(config, tmp_path / "other", encoder=encoder)
    assert f"`encoder` has projector 'mlp_8_4', the objective {objective.projector!r}" in caplog.text
    assert torch.load(run.projector_file)["projector"] == "mlp_8_4"


@pytest.fixture
def run(config, tmp_path):
    return pretrain(
        config,
        tmp_path / "run",
        encoder=wrapped(configured(config)),
    )


@pytest.mark.e2e
def test_a_run_of_ones_own_encoder_is_loaded_with_that_encoder_alone(run, config):
    objective = configured(config)
    with pytest.raises(UsageError, match=r"Tiny' is a module of your own, .*: pass it, as load_encoder\(run, encoder="):
        load_encoder(run.path)
    other = wrap_encoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), SHAPE, norm_banks=objective.norm_banks)
    with pytest.raises(
        UsageError, match="`encoder` is another one than the run was pretrained with: backbone own:torch"
    ):
        load_encoder(run.path, encoder=other)
    with pytest.raises(
        UsageError, match=r"another one than the run was pretrained with: mean \(0.0,\), there \(0.5,\)"
    ):
        load_encoder(run.path, encoder=wrapped(objective, input_range=(0, 1)))
    with pytest.raises(UsageError, match="another one .*: kwargs .*forward.*, there .*stem"):
        load_encoder(run.path, encoder=wrapped(objective, features="forward"))
    wide = wrap_encoder(Tiny(7), SHAPE, features="stem", input_range=(-1, 1), norm_banks=objective.norm_banks)
    with pytest.raises(UsageError, match="`encoder` is another network than the run was pretrained with: .*stem.0"):
        load_encoder(run.path, encoder=wide)
    with pytest.raises(
        UsageError, match="`encoder` of type Tiny: allowed is an encoder, as of acl_plugin.load_encoder"
    ):
        load_encoder(run.path, encoder=Tiny())


@pytest.mark.e2e
def test_the_folder_is_of_that_encoder(run, config):
    assert run.read_config().encoder.backbone.startswith("own:")
    with pytest.raises(UsageError, match="a run with different settings"):
        pretrain(config, run.path)


def test_an_encoder_that_does_not_fit_the_run_is_refused_before_anything_is_written(config, tmp_path):
    out = tmp_path / "run"
    config = config.replace(objective="acl_ds")
    one_bank = wrap_encoder(Tiny(), SHAPE)
    with pytest.raises(
        UsageError, match=r"norm banks \('clean',\), the objective has \('clean', 'adv'\); pass norm_banks="
    ):
        pretrain(config, out, encoder=one_bank)
    larger = wrap_encoder(Tiny(), (1, 16, 16), norm_banks=("clean", "adv"))
    with pytest.raises(UsageError, match=r"takes images of shape \(1, 16, 16\), those of digits are \(1, 8, 8\)"):
        pretrain(config, out, encoder=larger)
    with pytest.raises(UsageError, match="`encoder` of type Tiny: allowed is an encoder"):
        pretrain(config, out, encoder=Tiny())
    assert not out.exists()


def test_a_teacher_of_another_network_is_refused():
    objective = create_objective("deacl", teacher=wrap_encoder(Tiny(7), SHAPE, features="stem"))
    with pytest.raises(UsageError, match="the teacher is another network: .*module.stem.0.weight"):
        objective.setup(wrapped(objective))


def test_the_users_teacher_stays_as_it_is(needed, attack):
    teacher = needed("profeat")["teacher"].train()
    before = weights(teacher)
    objective = create_objective("profeat", teacher=teacher)
    encoder = wrapped(objective)
    objective.setup(encoder)
    x = torch.rand(6, *SHAPE)
    objective.backward(encoder, Views(x, weak=x), attack)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())
    assert not any(name.startswith("given") for name in objective.state_dict())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_an_encoder_of_any_type_of_weights_is_described(kind, config):
    encoder = wrapped(configured(config))
    module = encoder.backbone.to(kind)
    module.get_extra_state = lambda: {"version": 3}
    found = own_encoder.described(encoder)
    assert found == own_encoder.described(encoder)
    next(module.parameters()).data.mul_(2)
    assert {name for name, value in own_encoder.described(encoder).items() if found[name] != value} == {
        "weights_sha256"
    }


@pytest.mark.e2e
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mean": 3}'])
def test_a_damaged_record_of_the_encoder_is_named(content, config, tmp_path):
    encoder = wrapped(configured(config))
    run = pretrain(config, tmp_path / "run", encoder=encoder)
    run.own_encoder_file.write_text(content)
    with pytest.raises(UsageError, match=r"own_encoder.json is damaged"):
        pretrain(config, tmp_path / "run", encoder=encoder)
