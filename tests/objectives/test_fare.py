"""FARE: its authors' code, its formula, and what it starts from."""

import copy

import pytest
import torch

from acl_plugin import create_objective, load_encoder
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Views
from acl_plugin.objectives.fare import FARE as FARE_OBJECTIVE
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from conftest import spec
from golden_inputs import FARE, digest, fare_case, outputs, start_from_noise

pytestmark = pytest.mark.numeric


class Kept(InnerAttack):
    """An attack that keeps what it made."""

    def scalar(self, *arguments):
        vars(self)["made"] = super().scalar(*arguments)
        return self.made


@pytest.mark.e2e
@pytest.mark.parametrize("variant", FARE)
def test_updates_are_those_of_the_authors_code(monkeypatch, variant):
    objective, model, optimizer, views, attack = fare_case(variant)
    attack = Kept(attack.threat, attack.name, attack.steps, attack.kwargs)
    start_from_noise(monkeypatch)
    for theirs in outputs("fare")[variant]:
        optimizer.zero_grad()
        terms = objective.backward(model, views, attack)
        optimizer.step()
        statistics = [b for name, b in model.named_buffers() if name.endswith(("_mean", "_var"))]
        ours = {
            "loss": terms.total.item(),
            "moved": digest(attack.made.unbind(0)),
            "weights": digest(model.parameters()),
        }
        ours["statistics"] = digest(statistics) if objective.benign else []  # theirs also encodes what it does not use
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, theirs[key]))
            torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("benign", "trades"), [(0.0, False), (0.4, False), (0.4, True), (1.0, False)])
@pytest.mark.parametrize("view", ["images", "weak"])
def test_the_loss_is_a_sum_over_dimensions_and_a_mean_over_images(benign, trades, view):
    torch.manual_seed(0)
    objective = create_objective("fare", benign=benign, trades=trades, view=view)
    model = Encoder(spec(), objective.norm_banks, objective.projector).eval()
    objective.setup(model)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    images, weak = torch.rand(2, 4, 1, 8, 8)
    attack = Kept(ThreatModel("Linf", 0.1), "MomentumPGD", 3)
    terms = objective.terms(model, Views(images=images, weak=weak), attack)
    x = images if view == "images" else weak
    f, f_adv, f0 = model.features(x), model.features(attack.made), start.features(x)
    aim = f if trades else f0
    expected = sum(
        benign * (f[i, d] - f0[i, d]) ** 2 + (1 - benign) * (f_adv[i, d] - aim[i, d]) ** 2
        for i in range(4)
        for d in range(model.size)
    )
    assert terms.total.item() == pytest.approx(expected.item() / 4, rel=1e-5)
    assert objective.needs == (() if view == "images" else ("weak",))


def test_the_attack_moves_features_away_from_the_start():
    torch.manual_seed(0)
    objective = create_objective("fare")
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    x = torch.rand(8, 1, 8, 8)
    random = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    attack = Kept(ThreatModel("Linf", 0.1), "MomentumPGD", 10)
    objective.terms(model, Views(images=x), attack)
    moved, still = ((objective.start(each) - objective.start(x)).square().sum() for each in (attack.made, random))
    assert moved > 1.2 * still


def test_trades_without_a_benign_term_is_rejected():
    with pytest.raises(UsageError, match="trades needs benign above 0: .* constant features would be optimal"):
        create_objective("fare", trades=True)


@pytest.mark.parametrize("name", ["fare", "gsa_rsl"])
def test_random_weights_are_no_start(name, tiny_config, tmp_path):
    kwargs = {"base": "fare"} if name == "gsa_rsl" else {}
    config = tiny_config.replace(objective=name, objective_kwargs=kwargs)
    with pytest.raises(
        UsageError, match="not from random weights; give `pretrained` .*, `pretrained_file` FILE or `init`"
    ) as error:
        pretrain(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_the_start_is_the_encoder_of_the_run(teacher_run, tiny_config):
    config = tiny_config.replace(objective="fare", objective_kwargs={}, init=teacher_run)
    module = build(config, datasets.load(config.data))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(module.objective.start.train()(x), load_encoder(teacher_run).features(x))
    assert any(name.startswith("objective.start") for name in module.state_dict())


def test_the_distance_is_taken_in_float32_under_autocast():
    objective = create_objective("fare", benign=0.5)
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective.terms(model, Views(images=torch.rand(4, 1, 8, 8)), InnerAttack(ThreatModel("Linf", 0.1)))
    assert terms.total.dtype == torch.float32
    assert {part.dtype for part in terms.parts.values()} == {torch.float32}


@pytest.mark.e2e
def test_a_run_whose_features_become_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    teacher_run, tiny_config, tmp_path, monkeypatch
):
    config = tiny_config.replace(objective="fare", objective_kwargs={}, init=teacher_run, epochs=4, attack_steps=5)
    original, calls = Encoder.features, []

    def features(self, x, norm_bank=None):
        calls.append(x.requires_grad)
        f = original(self, x, norm_bank)
        return f * torch.nan if len(calls) > 40 else f

    monkeypatch.setattr(Encoder, "features", features)
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step \d+ .*; lower --lr"):
        pretrain(config, tmp_path / "run")
    saved = torch.load(RunDir(tmp_path / "run").checkpoint_file, weights_only=True)
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


@pytest.mark.e2e
def test_weights_that_are_not_finite_after_a_finite_loss_are_not_kept(teacher_run, tiny_config, tmp_path, monkeypatch):
    config = tiny_config.replace(objective="fare", objective_kwargs={}, init=teacher_run, epochs=3, attack_steps=1)
    original, calls = FARE_OBJECTIVE.backward, []

    def backward(self, model, views, attack):
        calls.append(1)
        terms = original(self, model, views, attack)
        if len(calls) == 4:  # the last step of the second epoch
            next(model.parameters()).grad.mul_(torch.nan)
        return terms

    monkeypatch.setattr(FARE_OBJECTIVE, "backward", backward)
    with pytest.raises(TrainingStopped, match="the weights are not finite after step 3; lower --lr"):
        pretrain(config, tmp_path / "run")
    saved = torch.load(RunDir(tmp_path / "run").checkpoint_file, weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())
    assert not RunDir(tmp_path / "run").encoder_file.exists()


def test_a_network_without_batchnorm_starts_at_no_loss():
    objective = create_objective("fare", benign=1.0)
    model = Encoder(
        spec(backbone="vit_tiny_patch16_224", kwargs={"depth": 1, "embed_dim": 12, "num_heads": 2}),
        ("shared",),
        "identity",
    )
    objective.setup(model)
    terms = objective.terms(model, Views(images=torch.rand(2, 1, 8, 8)), InnerAttack(ThreatModel("Linf", 0.1)))
    assert terms.total.item() == pytest.approx(0, abs=1e-6)
