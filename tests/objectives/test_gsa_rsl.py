"""GSA-RSL: its authors' code, plain formulas, and what it adds to every objective with an inner attack."""

import copy
import inspect
import math
from itertools import product

import pytest
import torch
from test_base import Counter, drawn
from test_methods import LinearEncoder
from torch import nn

import reference
from acl_plugin import available, create_objective, registry
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import TWO_SIDED
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Objective, Terms, Views
from acl_plugin.objectives.clae import CLAE
from acl_plugin.objectives.gsa_pass import Pass
from acl_plugin.objectives.simclr import SimCLR
from conftest import spec
from golden_inputs import (
    GSA_RSL,
    after_update,
    draw_in_float64,
    encoder_in_float64,
    gsa_case,
    outputs,
    start_from_noise,
)

pytestmark = pytest.mark.numeric
BASES = [name for name in available() if name != "gsa_rsl" and create_objective(name).attack_mode is not None]
KINDS = ("acl_a2a", "acl_ds", "rocl", "a_infonce", "deacl", "dynacl")
"""One norm bank and two, an attack on a pair and on a view, labels of clusters, a teacher, a momentum encoder."""


@pytest.mark.e2e
@pytest.mark.parametrize("variant", GSA_RSL)
def test_two_updates_are_those_of_the_authors_code(monkeypatch, variant):
    objective, model, optimizer, views, attack = gsa_case(variant)
    start_from_noise(monkeypatch)
    for theirs in outputs("gsa_rsl")[variant]:
        optimizer.zero_grad()
        objective.backward(model, views, attack)
        optimizer.step()
        ours = after_update(model, objective.divergence.network if objective.global_ else None)
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, theirs[key]))
            torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def two_banks(objective):
    """A tiny encoder in float64, and views away from 0 and 1."""
    model = encoder_in_float64(objective.norm_banks, objective.projector, objective.normalized).train()
    objective.setup(model)
    draw_in_float64(objective.divergence)
    a, b, weak = 0.2 + 0.6 * torch.rand(3, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return model, Views(a, b, a, torch.arange(6), weak)


@pytest.fixture
def pgd():
    return InnerAttack(ThreatModel("Linf", 0.1), "PGD", 3)


@pytest.mark.usefixtures("same_noise")
def test_the_loss_is_the_formula_and_h_takes_no_gradient_of_it(pgd):
    objective = create_objective("gsa_rsl", rho=0.0, global_=0.7, discriminator_lr=1e-9)
    model, views = two_banks(objective)
    moved = Pass(copy.deepcopy(objective), copy.deepcopy(model), views, pgd).calls[0].adversarial[0]
    twin, h = copy.deepcopy(model), objective.divergence.network
    terms = objective.terms(model, views, pgd)
    f = twin.features(torch.cat([views.a, views.weak]), "clean")
    p, q = twin.project(f, "clean").chunk(2)
    q_adv = twin(moved, "adv")

    def of(z, label):
        probabilities = [torch.sigmoid(h(row / row.norm()))[0] for row in z]
        return -sum(torch.log(value if label else 1 - value) for value in probabilities) / len(z)

    with torch.no_grad():
        expected = 2 * reference.nt_xent(p, q, 0.5) + reference.nt_xent(p, q_adv, 0.5)
        expected += 0.7 * (math.log(2) - (of(q, 1) + of(q_adv, 0)) / 2)
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert terms.parts.keys() == {"nce_clean", "nce_adv", "global_linear"}
    terms.total.backward()
    assert all(parameter.grad is None for parameter in h.parameters())


def test_h_takes_a_step_of_sgd_on_embeddings_in_eval_mode(pgd):
    objective = create_objective("gsa_rsl", divergence="deep", discriminator_lr=0.3)
    model, views = two_banks(objective)
    before, h = copy.deepcopy(model).eval(), copy.deepcopy(objective.divergence.network)
    done = Pass(objective, model, views, pgd)
    with torch.no_grad():
        q = nn.functional.normalize(before(views.weak, "clean"))
        q_adv = nn.functional.normalize(before(done.calls[0].adversarial[0], "adv"))
    bce = nn.functional.binary_cross_entropy_with_logits
    loss = (bce(h(q), torch.ones_like(h(q))) + bce(h(q_adv), torch.zeros_like(h(q)))) / 2
    loss.backward()
    for ours, p in zip(objective.divergence.network.parameters(), h.parameters(), strict=True):
        torch.testing.assert_close(ours, p - 0.3 * (p.grad + 1e-4 * p))


def test_the_attack_maximizes_what_h_detects_beside_the_contrast(pgd):
    """On an encoder with large gradients: the linear one."""
    found = {}
    views = Views(*torch.rand(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(2)), rows=torch.arange(4))
    for weight in (1e-6, 50.0):
        torch.manual_seed(0)
        own = {"base": "acl_ds", "global_": weight, "discriminator_lr": 1e-9}
        objective, model = create_objective("gsa_rsl", **own), LinearEncoder()
        objective.setup(model)
        moved = torch.cat(Pass(objective, model, views, pgd).calls[0].adversarial)
        with torch.no_grad():
            z = nn.functional.normalize(model(moved, "adv"))
            found[weight] = nn.functional.softplus(objective.divergence.values(z)).mean()
    assert found[50.0] < found[1e-6] - 0.01  # BCE(h(q'), 0)


def test_the_rate_of_h_follows_its_schedule():
    objective = create_objective("gsa_rsl")
    objective.setup(Encoder(spec(), objective.norm_banks, objective.projector))
    rates = []
    for epoch in range(100):
        objective.on_epoch(epoch, 100)
        rates.append(objective.divergence.lr)
    assert rates[0] == pytest.approx(0.05 * 0.2 * (1 + math.cos(math.pi / 10)) / 2, abs=1e-7)
    assert rates[50] == pytest.approx(0.1, abs=1e-7)
    assert rates[99] < rates[98] < rates[10] == max(rates)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("base", "settings"), [("acl_ds", {}), ("acl_a2s", {"attack_mode": "bank"}), ("dynacl", {})])
def test_it_adds_to_the_loss_of_its_base(base, settings, pgd):
    """Plain sums: what the base alone has, the benign contrast, and the divergence of features."""
    torch.manual_seed(4)
    views = Views(*torch.rand(2, 4, 1, 4, 4), rows=torch.arange(4))
    own = {"base": base, "base_kwargs": settings, "benign": 0.7, "adversarial": 1.5, "attack_divergence": False}
    objective = create_objective("gsa_rsl", **own, rho=0.0, divergence="mmd", layer="features", global_=0.4)
    alone = create_objective(base, **settings)
    model = LinearEncoder()
    for each in (alone, objective):
        each.setup(model)
    expected = 1.5 * alone.terms(model, views, pgd).total
    compared = []

    class Kept(InnerAttack):
        def pairwise(self, *arguments, **options):
            moved = super().pairwise(*arguments, **options)
            compared[:] = [(views.a, moved[0]), (views.b, moved[1])]
            return moved

        def bank(self, model, x, keys, **options):
            compared[:] = [(x, super().bank(model, x, keys, **options))]
            return compared[0][1]

    terms = objective.terms(model, views, Kept(pgd.threat, pgd.name, pgd.steps))
    if base == "dynacl":  # its momentum encoder encodes the other view
        del compared[1:]
    with torch.no_grad():
        benign = torch.cat([model.features(x, "clean") for x, _ in compared])
        adversarial = torch.cat([model.features(moved, "adv") for _, moved in compared])
        expected = expected + 0.7 * reference.nt_xent(model(views.a, "clean"), model(views.b, "clean"), 0.5)
        expected = expected + 0.4 * objective.divergence(benign, adversarial)[0]
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.fixture
def base_settings(settings_of):
    return lambda name: {"base": name, "base_kwargs": settings_of(name)}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "own"),
    [
        *product(BASES, [{}, {"sharpen": "all", "steps": 4}]),
        *product(KINDS, [{"divergence": "mmd"}, {"benign": 0.0}]),  # of its own parts, the same on every base
    ],
)
def test_every_objective_with_an_attack_is_a_base_at_the_cost_that_is_reported(name, own, base_settings, monkeypatch):
    objective = create_objective("gsa_rsl", **base_settings(name), **own)
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    optimizer = torch.optim.SGD(objective.param_groups(model), lr=0.01)
    start = [p.detach().clone() for p in model.parameters()]
    for epoch in range(2):
        objective.on_epoch(epoch, 2)
        optimizer.zero_grad()
        with monkeypatch.context() as patch:
            counter = Counter(patch)
            terms = objective.backward(model, drawn(objective, 4), InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2))
        optimizer.step()
        assert terms.total.isfinite()
        assert {f"global_{objective.estimator}"} <= terms.parts.keys()
        measured = counter.forwards + counter.input_gradients + 2 * counter.weight_gradients
        assert measured / 4 == objective.cost.encoder_forwards(2)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_a_base_of_a_third_party_needs_to_show_nothing_more(register, pgd):
    class Half(Objective):
        """Attacks one view; one norm bank; encodes both at once."""

        norm_banks, attack_mode, needs = ("shared",), "pairwise", ("a", "b")

        def terms(self, model, views, attack):
            a, _ = attack.pairwise(model, views.a, views.b)
            za, zb = model(torch.cat([a, views.b])).chunk(2)
            return Terms.weighted(apart=(1.0, (za - zb).square().mean()))

    register("half", Half)
    objective = create_objective("gsa_rsl", base="half")
    assert objective.cost is None
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    terms = objective.backward(model, drawn(objective), pgd)
    assert terms.parts.keys() == {"apart", "nce_clean", "sharpness", "global_linear"}


def test_sharpness_of_everything_moves_a_momentum_encoder_once(pgd):
    torch.manual_seed(0)
    objective = create_objective("gsa_rsl", base="dynacl", base_kwargs={"momentum": 0.5}, sharpen="all")
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    with torch.no_grad():
        model.projector[0].weight.add_(1.0)
    copied = objective.base.copy.encoder.projector[0].weight
    before = copied.clone()
    objective.backward(model, drawn(objective), pgd)
    torch.testing.assert_close(copied, (before + model.projector[0].weight) / 2)


@pytest.mark.parametrize(("base", "own"), [("dynacl", {"momentum": 0.5}), ("3sat", {"momentum": 0.5, "start": 0.0})])
def test_the_second_pass_of_sharpness_has_the_base_of_the_first(base, own, pgd):
    """With a step of length 0, both passes have the same loss, and nothing is added."""
    torch.manual_seed(0)
    settings = {"base": base, "base_kwargs": own, "sharpen": "all", "global_": 0.0, "rho": 1e-9, "adaptive": False}
    objective = create_objective("gsa_rsl", **settings)
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    alone = copy.deepcopy(objective)
    terms = objective.backward(model, drawn(objective), pgd)
    assert abs(terms.parts["sharpness"].item()) < 1e-5
    alone.base.terms(model, drawn(objective), pgd)
    moved = dict(objective.base.named_parameters())
    for name, value in alone.base.named_parameters():
        torch.testing.assert_close(moved[name], value)


@pytest.mark.parametrize("base", [name for name in BASES if "temperature" in vars(create_objective(name))])
def test_the_temperature_is_also_that_of_the_base(base):
    if "temperature" in inspect.signature(registry.OBJECTIVES.get(base)).parameters:
        assert create_objective("gsa_rsl", temperature=0.1, base=base).base.temperature == 0.1
    else:
        with pytest.raises(UsageError, match="temperature"):
            create_objective(base, temperature=0.1)


def test_views_strength_and_the_encoder_to_keep_are_those_of_the_base():
    objective = create_objective("gsa_rsl", base="dynacl")
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    objective.on_epoch(90, 100)
    assert objective.strength == objective.base.strength < 1
    assert objective.downstream(model) is objective.base.copy.encoder
    assert (objective.projector, objective.normalized) == ("three_layer", False)
    released = create_objective("gsa_rsl")
    assert (released.projector, released.normalized, released.needs) == ("two_layer", True, ("a", "weak"))


@pytest.mark.parametrize("base", BASES)
def test_an_epoch_has_an_attack_if_the_base_has_one(base, settings_of):
    objective = create_objective("gsa_rsl", base=base, base_kwargs=settings_of(base))
    objective.setup(Encoder(spec(), objective.norm_banks, objective.projector))
    modes = []
    for epoch in range(10):
        objective.on_epoch(epoch, 10)
        modes.append((objective.attack_mode, objective.base.attack_mode))
    assert [own is None for own, _ in modes] == [of_base is None for _, of_base in modes]
    assert modes[-1][0] is not None


def test_two_sided_is_what_acl_a2a_is_the_base_of():
    objective = create_objective("gsa_rsl", **TWO_SIDED)
    assert (objective.norm_banks, objective.attack_mode, objective.needs) == (("adv",), "pairwise", ("a", "b"))
    assert (objective.projector, objective.normalized) == ("three_layer", False)


def test_clae_contrasts_a_view_with_its_own_adversarial_example(pgd, monkeypatch):
    start_from_noise(monkeypatch)
    model = LinearEncoder()
    views = Views(*(0.2 + 0.6 * torch.rand(2, 4, 1, 4, 4)))
    made = []

    class Kept(InnerAttack):
        def scalar(self, model, x, rows, **options):
            assert x is views.b
            made.append(super().scalar(model, x, rows, **options))
            return made[0]

    terms = CLAE(temperature=0.4, benign=0.3).terms(model, views, Kept(pgd.threat, pgd.name, pgd.steps))
    a, b, moved = model(views.a, "clean"), model(views.b, "clean"), model(made[0], "adv")
    expected = 0.3 * reference.nt_xent(a, b, 0.4) + reference.nt_xent(b, moved, 0.4)
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-5)


class OwnBackward(CLAE):
    def backward(self, model, views, attack):
        return super().backward(model, views, attack)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "simclr"}, "base 'simclr' has no adversarial examples; allowed: 3sat, a_infonce, acl_a2a, acl_a2s"),
        ({"base": "gsa_rsl"}, "base 'gsa_rsl' has a backward pass of its own; allowed: 3sat, a_infonce, acl_a2a"),
        ({"base": "own_backward"}, "base 'own_backward' has a backward pass of its own"),
        ({"base": "acl_sd"}, "unknown base 'acl_sd'; the nearest: acl_ds"),
        (
            {"base": "acl_ds", "base_kwargs": {"benin": 1}},
            "setting of objective 'acl_ds': 'benin'; the nearest: benign",
        ),
        ({"base_kwargs": {"benign": 1}}, "base_kwargs {'benign': 1}: allowed is settings of a base; give base as well"),
        ({"base": "deacl", "layer": "projections"}, "projector 'identity' has none; the nearest: features"),
        ({"projector": "identity", "layer": "projections"}, "projector 'identity' has none; the nearest: features"),
        ({"layer": "feature"}, "unknown layer 'feature'; the nearest: features"),
        ({"rho": -0.1}, "rho -0.1: allowed is a number from 0"),
        ({"steps": 5}, "steps 5: allowed is 3 or 4"),
        ({"steps": 4, "divergence": "js"}, "steps 4: allowed is 3, or a discriminator"),
        ({"discriminator_lr": 0}, "discriminator_lr 0: allowed is a number above 0"),
        ({"divergence": "liner"}, "unknown divergence 'liner'; the nearest: linear"),
        ({"sharpen": "al"}, "unknown sharpen 'al'; the nearest: all"),
        ({"projector": "two_layers"}, "unknown projector 'two_layers'; the nearest: two_layer"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_line(settings, message, register):
    register("own_backward", OwnBackward)
    with pytest.raises(UsageError, match=message) as error:
        create_objective("gsa_rsl", **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            "deacl",
            r"base 'deacl': .* needs a teacher: .*--objective-kwargs.base_kwargs.teacher TEACHER, or .*Python: base_",
        ),
        ("advcl", r"base 'advcl': .* needs pseudo-labels: .*--objective-kwargs.base_kwargs.cluster_weight 0 to go"),
    ],
)
def test_what_a_base_needs_and_does_not_get_is_reported_in_a_line(base, message):
    objective = create_objective("gsa_rsl", base=base)
    with pytest.raises(UsageError, match=message) as error:
        objective.setup(Encoder(spec(), objective.norm_banks, objective.projector))
    assert "\n" not in str(error.value)
    assert error.value.parameter.startswith("base_kwargs.")


def test_a_base_that_does_not_attack_is_reported(register, pgd):
    class Idle(SimCLR):
        attack_mode = "scalar"

    register("idle", Idle)
    objective = create_objective("gsa_rsl", base="idle")
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    with pytest.raises(UsageError, match="base 'idle' made no adversarial examples with its attack"):
        objective.backward(model, drawn(objective), pgd)
