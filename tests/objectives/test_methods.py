"""Each recipe against plain loops over its paper's formula, on a tiny linear encoder."""

import copy
import inspect
import math
from typing import ClassVar, get_args, get_type_hints

import pytest
import torch
from torch import nn

import reference
from acl_plugin import available, create_objective, load_encoder
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import TWO_SIDED
from acl_plugin.data.augment import high_pass
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import HardNegatives, cosine_distance_rows, multi_view_nce_rows
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.air import invariance
from acl_plugin.objectives.base import Views
from acl_plugin.objectives.branches import Pair, Teacher
from acl_plugin.objectives.gsa_pass import Pass
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.registry import OBJECTIVES
from conftest import spec
from golden_inputs import advcl_case, noise, outputs, start_from_noise, summary

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("same_noise")]
TAU = 0.4


class LinearEncoder(nn.Module):
    """f(x) = W_route x, g(f) = V f: every quantity of a recipe is a short formula."""

    def __init__(self, size=5):
        super().__init__()
        torch.manual_seed(3)
        self.size, self.norm_banks, self.scale = size, ("clean", "adv"), 1.3
        self.backbone, self.projector = nn.Identity(), nn.Identity()  # stand-ins: w and v are the weights
        self.w = nn.Parameter(torch.randn(size, 16) / 4)
        self.v = nn.Parameter(torch.randn(size, size) / 2)

    def features(self, x, norm_bank=None):
        scale = self.scale if norm_bank == "adv" else 1.0
        return (x.flatten(1) - 0.5 * scale) @ self.w.T

    def project(self, features, norm_bank=None):
        return features @ self.v.T

    def forward(self, x, norm_bank=None):
        return self.project(self.features(x, norm_bank), norm_bank)

    def views(self, a, b, norm_bank=None):
        return self(a, norm_bank), self(b, norm_bank)


@pytest.fixture
def model():
    return LinearEncoder()


@pytest.fixture
def views():
    torch.manual_seed(4)
    a, b, images, weak = torch.rand(4, 4, 1, 4, 4)
    return Views(a, b, images, torch.arange(4), weak)


@pytest.fixture
def attack():
    return InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2)


def run(objective, model, views, attack):
    objective.setup(model)
    model.zero_grad()
    terms = objective.backward(model, views, attack)
    return terms, [p.grad for p in model.parameters()]


def in_float64(model, loss):
    """A reference loss of a float64 copy of the model, and its gradients."""
    twin = copy.deepcopy(model).double()
    value = loss(twin)
    return value, list(torch.autograd.grad(value, list(twin.parameters())))


def check(terms, gradients, expected, expected_gradients, scale=1):
    """To 1e-5, times ``scale`` for a loss that is itself scaled up."""
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-5 * scale)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        ours = torch.zeros_like(theirs) if ours is None else ours.double()  # a weight that the loss does not see
        torch.testing.assert_close(ours, theirs, atol=1e-5 * scale, rtol=1e-4)


def loop(twin, a, b, route_a=None, route_b=None):
    return reference.nt_xent(twin(a.double(), route_a), twin(b.double(), route_b or route_a), TAU)


def test_simclr(model, views, attack):
    result = run(create_objective("simclr", temperature=TAU), model, views, attack)
    check(*result, *in_float64(model, lambda m: loop(m, views.a, views.b)))


def test_acl_a2a(model, views, attack):
    result = run(create_objective("acl_a2a", temperature=TAU), model, views, attack)
    a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=TAU)
    assert not torch.equal(a, views.a)
    check(*result, *in_float64(model, lambda m: loop(m, a, b, "adv")))


@pytest.mark.parametrize("view", ["scalar", "bank"])
def test_acl_a2s(model, views, attack, view):
    result = run(create_objective("acl_a2s", temperature=TAU, attack_mode=view), model, views, attack)
    with torch.no_grad():
        keys = model(views.b, "clean")
    if view == "bank":
        a = attack.bank(model, views.a, keys, norm_bank="adv", temperature=TAU)
    else:

        def rows(x):
            return torch.stack([reference_row(model(x, "adv"), keys, i) for i in range(len(x))])

        a = attack.scalar(model, views.a, rows)
    check(*result, *in_float64(model, lambda m: loop(m, a, views.b, "adv", "clean")))


def reference_row(za, zb, i):
    """Mean of the NT-Xent rows of image i in both views."""
    z = torch.cat([za, zb])
    total = 0.0
    for anchor, partner in ((i, i + len(za)), (i + len(za), i)):
        others = [reference.cosine(z[anchor], z[k]) / TAU for k in range(len(z)) if k != anchor]
        total = total - reference.cosine(z[anchor], z[partner]) / TAU + torch.logsumexp(torch.stack(others), 0)
    return total / 2


def test_acl_ds(model, views, attack):
    terms, gradients = run(create_objective("acl_ds", temperature=TAU), model, views, attack)
    a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=TAU)
    expected = in_float64(model, lambda m: (loop(m, views.a, views.b) + loop(m, a, b, "adv")) / 2)
    check(terms, gradients, *expected)
    assert set(terms.parts) == {"nce_clean", "nce_adv"}


def nce(views, weight, detached=lambda a, b: False):
    return reference.multi_view_nce(views, TAU, weight, detached)


def contrast_rows(model, x, keys, norm_bank=None, detached=False):
    return multi_view_nce_rows([model(x, norm_bank), *keys], TAU, detached=detached)


def moved_from_partner(model, views, attack, released):
    """RoCL's adversarial view, also under A-InfoNCE."""
    with torch.no_grad():
        key = model(views.b)
    return attack.scalar(model, views.a, lambda x: contrast_rows(model, x, [key], detached=released))


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_rocl(model, views, attack, fidelity):
    objective = create_objective("rocl", temperature=TAU, regularizer=0.3, fidelity=fidelity)
    terms, gradients = run(objective, model, views, attack)
    released = fidelity == "released"
    a = moved_from_partner(model, views, attack, released)

    def loss(m):
        benign_a, benign_b, moved = (m(x.double()) for x in (views.a, views.b, a))
        main = nce([benign_a, benign_b, moved], lambda i, j: 1 / 3, lambda i, j: released)
        return main + 0.3 * nce([moved, benign_b], lambda i, j: 1 / 2, lambda i, j: released)

    check(terms, gradients, *in_float64(model, loss))
    assert set(terms.parts) == {"nce3", "nce_adv"}


def test_released_rocl_passes_its_pair_through_the_statistics_first(encoder, attack, same_noise):
    """As the code does: (a', b) of the second term, then (a, b, a')."""
    torch.manual_seed(2)
    a, b = torch.rand(2, 6, 1, 8, 8)
    model, twin = Encoder(encoder.spec, ("shared",), "wide").train(), Encoder(encoder.spec, ("shared",), "wide").train()
    twin.load_state_dict(model.state_dict())
    objective = create_objective("rocl", fidelity="released")
    seen = []

    class Kept(InnerAttack):
        def scalar(self, *arguments):
            seen.append(super().scalar(*arguments))
            return seen[-1]

    objective.terms(model, Views(a, b, a, torch.arange(6), a), Kept(attack.threat, attack.name, attack.steps))
    twin(torch.cat([seen[0], b]))
    twin(torch.cat([a, b, seen[0]]))
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def labeled(rows, sizes=(2, 3)):
    torch.manual_seed(5)
    labels = {size: torch.randint(size, (len(rows),)) for size in sizes}
    return PseudoLabels(rows, labels), labels


def advcl_loss(model, views, attack, objective, labels, weight, detached=lambda a, b: False, hard=None, attacked=None):
    """The loss written out, with the two attacks of the recipe."""
    high = high_pass(views.weak)
    with torch.no_grad():
        keys = [model(x, "clean") for x in (views.a, views.b, high)]
    moved = attack.scalar(
        model, views.weak, lambda x: multi_view_nce_rows([model(x, "adv"), *keys], TAU, weights=attacked)
    )

    def cross_entropy(m, x):
        features = m.features(x, "ce")
        return sum(
            torch.nn.functional.cross_entropy(head.to(x.dtype)(features), labels[size], reduction="none")
            for head, size in zip(objective.clusters.heads, sorted(labels), strict=True)
        )

    misled = attack.scalar(model, views.weak, lambda x: cross_entropy(model, x))

    def loss(m):
        z = [m(moved.double(), "adv"), *(m(x.double(), "clean") for x in (views.a, views.b, high))]
        contrast = nce(z, weight, detached) if hard is None else reference.hard_negative_nce(z, TAU, *hard, weight)
        return 0.5 / 0.07 * contrast + 0.2 * cross_entropy(m, misled.double()).mean() / len(labels)

    result = in_float64(model, loss)
    objective.clusters.heads.float()
    return result


@pytest.mark.e2e
def test_advcl(model, views, attack):
    given, labels = labeled(views.rows)
    objective = create_objective("advcl", temperature=TAU, pseudo_labels=given)
    terms, gradients = run(objective, model, views, attack)
    check(terms, gradients, *advcl_loss(model, views, attack, objective, labels, lambda a, b: 1 / 12), scale=10)
    assert set(terms.parts) == {"nce4", "cluster_ce"}
    heads = [p for group in objective.param_groups(model) for p in group["params"]]
    assert all(any(p is q for q in heads) for p in objective.clusters.heads.parameters())
    assert all(p.grad is not None for p in objective.clusters.heads.parameters())


class Moved(InnerAttack):
    """An attack that keeps what it made."""

    made: ClassVar[list] = []

    def scalar(self, model, x, row_losses):
        self.made.append(super().scalar(model, x, row_losses))
        return self.made[-1]


def check_golden(monkeypatch, expected, name, **settings):
    """One batch in epoch 0, and again in epoch 30 of 400, as the authors' code did it."""
    objective, model, views, attack = advcl_case(name, **settings)
    attack = Moved(attack.threat, attack.name, attack.steps)
    start_from_noise(monkeypatch)
    for epoch, step in zip((0, 30), expected, strict=False):
        objective.on_epoch(epoch, 400)
        model.zero_grad()
        attack.made.clear()
        terms = objective.backward(model, views, attack)
        ours = summary(model, terms.total)
        for part, moved in zip(("w'", "w''"), attack.made, strict=True):
            ours[part] = moved.flatten(1).mul(noise((1, 64))).sum(1).tolist()
        assert ours.keys() == step.keys()
        for key, value in ours.items():
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (value, step[key]))
            torch.testing.assert_close(*pair, rtol=3e-7, atol=1e-8)


@pytest.mark.e2e
def test_released_advcl_is_the_authors_code(monkeypatch):
    check_golden(monkeypatch, outputs("advcl")["advcl"], "advcl")


@pytest.mark.e2e
@pytest.mark.parametrize("variant", ["ip", "hn", "iphn"])
def test_released_a_infonce_on_advcl_is_the_authors_code(monkeypatch, variant):
    check_golden(monkeypatch, outputs("a_infonce")[variant], "a_infonce", variant=variant)


@pytest.mark.parametrize("name", ["advcl", "a_infonce"])
def test_advcl_attacks_with_the_running_statistics_and_leaves_them(monkeypatch, name):
    """The keys too: another batch statistic must not reach the attack."""
    monkeypatch.setattr("golden_inputs.FIDELITY", "paper")
    objective, model, views, attack = advcl_case(name)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    seen = []

    class Looked(InnerAttack):
        def scalar(self, network, x, row_losses):
            with norm_banks.inference(network):
                seen.append(row_losses(x))
            assert all(torch.equal(buffers[key], value) for key, value in model.named_buffers()) or len(seen) > 1
            return super().scalar(network, x, row_losses)

    objective.terms(model, views, Looked(attack.threat, attack.name, attack.steps))
    twin = advcl_case(name)[1].eval()
    z = [twin(views.weak, "adv"), *(twin(x, "clean") for x in (views.a, views.b, high_pass(views.weak)))]
    torch.testing.assert_close(seen[0], 0.5 / 0.07 * multi_view_nce_rows(z, 0.5))


@pytest.mark.parametrize(
    ("base", "variant", "tau_plus"),
    [("advcl", "hn", 0.12), ("advcl", "iphn", 0.1), ("rocl", "hn", 0.12), ("rocl", "iphn", 0.12)],
)
def test_the_prior_of_false_negatives_is_the_published_one(base, variant, tau_plus):
    settings = {"cluster_weight": 0} if base == "advcl" else {}
    assert create_objective("a_infonce", base=base, variant=variant, **settings).hard.tau_plus == tau_plus


def test_advcl_without_clusters_is_the_contrast_alone(model, views, attack):
    objective = create_objective("advcl", temperature=TAU, cluster_weight=0)
    terms, _ = run(objective, model, views, attack)
    assert set(terms.parts) == {"nce4"}
    assert terms.total.item() == pytest.approx(0.5 / 0.07 * terms.parts["nce4"].item(), rel=1e-6)


def crossed(a, b):
    return (a == 0) != (b == 0)


def test_the_share_of_inferior_positives_adapts_as_it_is_set():
    objective = create_objective("a_infonce", variant="ip", alpha=0.3, warmup=0.5, nearest=1.0)
    objective.on_epoch(1, 4)
    assert objective.warm
    objective.on_epoch(2, 4)
    assert not objective.warm
    assert [round(objective._share(d, 2.0), 9) for d in (0.9, 1.5, 2.1)] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "rocl", "warmup": 0.1}, "warmup 0.1 is not used with iphn on rocl"),
        ({"variant": "hn", "nearest": 0.1}, "nearest 0.1 is not used with hn on advcl"),
        ({"warmup": 1.5}, "warmup 1.5: allowed is a share"),
        ({"nearest": -1.0}, "nearest -1.0: allowed"),
    ],
)
def test_adaptive_shares_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        create_objective("a_infonce", **settings)


@pytest.mark.e2e
@pytest.mark.parametrize("variant", ["ip", "hn", "iphn"])
def test_a_infonce_on_advcl(model, views, attack, variant):
    given, labels = labeled(views.rows)
    settings = {"alpha": 0.3, "adversarial_weight": 1.5, "tau_plus": 0.2, "beta": 0.7}
    objective = create_objective("a_infonce", variant=variant, temperature=TAU, pseudo_labels=given, **settings)
    objective.on_epoch(0, 100)
    terms, gradients = run(objective, model, views, attack)

    def weight(a, b):  # a: anchor, b: positive; 0 is the adversarial view
        if not crossed(a, b):
            return 1 / 12
        return 2 * (0.7 if a == 0 else 0.3) * 1.5 / 12

    if variant == "ip":
        expected = advcl_loss(model, views, attack, objective, labels, weight, crossed)
        check(terms, gradients, *expected, scale=10)
    elif variant == "hn":
        expected = advcl_loss(model, views, attack, objective, labels, None, hard=(0.2, 0.7, "paper"))
        check(terms, gradients, *expected, scale=10)
    else:
        torch.testing.assert_close(
            objective.weights, torch.tensor([[weight(a, b) if a != b else 0 for b in range(4)] for a in range(4)])
        )
        assert objective.stopped.tolist() == [[crossed(a, b) for b in range(4)] for a in range(4)]
        assert objective.hard == HardNegatives(0.2, 0.7)


@pytest.mark.e2e
@pytest.mark.parametrize("variant", ["ip", "hn"])
def test_released_a_infonce_on_advcl(model, views, attack, variant):
    """An assignment in place weighs adversarial anchors by aw + aw^2 and benign ones by 0, in the attack and in hn."""
    given, labels = labeled(views.rows)
    settings = {"alpha": 0.3, "adversarial_weight": 1.5, "tau_plus": 0.2, "beta": 0.7, "fidelity": "released"}
    objective = create_objective("a_infonce", variant=variant, temperature=TAU, pseudo_labels=given, **settings)
    terms, gradients = run(objective, model, views, attack)
    one_sided = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]) / 12
    one_sided[0] *= 1.5 + 1.5**2

    def weight(a, b):
        if variant == "hn":
            return one_sided[a, b].item()
        return 2 * (0.7 if a == 0 else 0.3) * 1.5 / 12 if crossed(a, b) else 1 / 12

    how = {"hard": (0.2, 0.7, "advcl")} if variant == "hn" else {"detached": crossed}
    expected = advcl_loss(model, views, attack, objective, labels, weight, attacked=one_sided, **how)
    check(terms, gradients, *expected, scale=10)


@pytest.mark.e2e
@pytest.mark.parametrize("variant", ["ip", "hn"])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_a_infonce_on_rocl(model, views, attack, variant, fidelity):
    settings = {"alpha": 0.3, "adversarial_weight": 1.5, "tau_plus": 0.2, "beta": 0.7, "regularizer": 0.0}
    objective = create_objective(
        "a_infonce", base="rocl", variant=variant, temperature=TAU, fidelity=fidelity, **settings
    )
    terms, gradients = run(objective, model, views, attack)
    released = fidelity == "released"
    moved = moved_from_partner(model, views, attack, released)

    def loss(m):
        z = [m(x.double()) for x in (views.a, views.b, moved)]
        if variant == "hn":
            return 2 * reference.hard_negative_nce(z, TAU, 0.2, 0.7)
        weights = torch.full((3, 3), 1 / 3)
        weights[:, 2], weights[2, :] = 0.3 * 1.5 / 3, 0.7 * 1.5 / 3
        return nce(z, lambda a, b: weights[a, b].item(), lambda a, b: released or (a == 2) != (b == 2))

    if variant == "hn" and released:
        assert objective.hard == HardNegatives(0.2, 0.7, "rocl")
        assert objective.stopped is True
        return  # the loop has no stopped gradients
    check(terms, gradients, *in_float64(model, loss))


def test_a_infonce_adapts_the_share_of_inferior_positives(model, views, attack):
    objective = create_objective("a_infonce", variant="ip", alpha=0.2, cluster_weight=0, temperature=TAU)
    objective.setup(model)
    objective.on_epoch(0, 40)
    assert objective.warm
    objective.backward(model, views, attack)
    usual = (objective.sum / objective.count).item()
    objective.nearest = usual / 4
    assert objective.count == 1
    objective.on_epoch(3, 40)
    assert not objective.warm
    objective.backward(model, views, attack)
    assert objective.count == 1
    middle = (usual + objective.nearest) / 2
    assert objective._share(usual + 1e-6, usual) == 0.2
    assert objective._share(objective.nearest - 1e-6, usual) == 0.5
    assert objective._share(middle, usual) == pytest.approx(0.35)


def test_dynacl(model, views, attack):
    objective = create_objective("dynacl", temperature=TAU, momentum=0.9)
    objective.setup(model)
    with torch.no_grad():
        model.w.add_(0.1)  # the copy now lags
    objective.weight = 1.4
    k = copy.deepcopy(objective.copy.encoder)
    terms = objective.backward(model, views, attack)
    gradients = [p.grad for p in model.parameters()]
    a, b = attack.pairwise(Pair(model, k), views.a, views.b, norm_bank="adv", temperature=TAU)
    fixed = copy.deepcopy(k).double()

    def loss(m):
        clean = reference.nt_xent(m(views.a.double(), "clean"), fixed(views.b.double(), "clean"), TAU)
        return (0.6 * clean + 1.4 * reference.nt_xent(m(a.double(), "adv"), fixed(b.double(), "adv"), TAU)) / 2

    check(terms, gradients, *in_float64(model, loss))
    # the copy has followed the weights of before the optimizer's step
    torch.testing.assert_close(objective.copy.encoder.w, 0.9 * k.w + 0.1 * model.w)
    assert objective.downstream(model) is objective.copy.encoder


@pytest.mark.parametrize(
    ("epoch", "strength", "weight"), [(1, 1.0, 1.0), (50, 1.0, 1 + 1 / 30), (51, 0.95, 1 + 1 / 30), (1000, 0.05, 5 / 3)]
)
def test_schedules_of_dynacl(epoch, strength, weight):
    objective = create_objective("dynacl")
    objective.on_epoch(epoch - 1, 1000)
    assert objective.strength == pytest.approx(strength)
    assert objective.weight == pytest.approx(weight)
    objective = create_objective("dynacl", rate=2.0)
    objective.on_epoch(999, 1000)
    assert objective.weight == 2.0


def test_dynacl_rcs_has_no_momentum_copy(model, views, attack):
    objective = create_objective("dynacl", temperature=TAU, momentum=None)
    objective.on_epoch(949, 1000)
    assert objective.weight == pytest.approx(1 + 2 / 3 * 0.9)
    terms, gradients = run(objective, model, views, attack)
    a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=TAU)

    def loss(m):
        clean = reference.nt_xent(m(views.a.double(), "clean"), m(views.b.double(), "clean"), TAU)
        return (0.4 * clean + 1.6 * reference.nt_xent(m(a.double(), "adv"), m(b.double(), "adv"), TAU)) / 2

    check(terms, gradients, *in_float64(model, loss))
    assert objective.downstream(model) is model


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.0), (50, 0.0), (51, 1 / 30), (100, 1 / 30), (1000, 19 / 30)])
def test_the_weight_of_dynacl_rcs_is_of_the_strength_of_the_same_epoch(epoch, weight):
    objective = create_objective("dynacl", momentum=None)
    objective.on_epoch(epoch - 1, 1000)
    assert objective.weight == pytest.approx(1 + weight)
    assert objective.weight - 1 == pytest.approx(2 / 3 * (1 - objective.strength))


@pytest.mark.parametrize(("epoch", "strength"), [(1, 1.0), (50, 1.0), (51, 0.95), (1000, 0.05)])
def test_schedules_of_dynacl_air(epoch, strength):
    objective = create_objective("dynacl_air")
    objective.on_epoch(epoch - 1, 1000)
    assert objective.strength == pytest.approx(strength)
    assert objective.weight == pytest.approx((1 - strength) * 2 / 3)
    still = create_objective("acl_air")
    still.on_epoch(epoch - 1, 1000)
    assert (still.strength, still.weight) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["acl_air", "dynacl_air"])
@pytest.mark.parametrize("fidelity", ["paper", "released", "normalized"])
def test_air(model, views, attack, name, fidelity):
    objective = create_objective(name, temperature=TAU, standard=0.4, adversarial=0.7, fidelity=fidelity)
    objective.on_epoch(8, 10)
    w = objective.weight
    assert (w > 0) == (name == "dynacl_air")
    terms, gradients = run(objective, model, views, attack)
    moved = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=TAU)

    def divergence(p, q):
        if fidelity == "normalized":
            p, q = p / p.sum(), q / q.sum()
        return sum(
            b * (torch.log(b) - (a if fidelity == "released" else torch.log(a))) for a, b in zip(p, q, strict=True)
        )

    def loss(m):
        a, b, o = (m(x.double(), "clean") for x in (views.a, views.b, views.images))
        adv_a, adv_b = (m(x.double(), "adv") for x in moved)

        def law(u, v):
            return reference.batch_law(u, v, TAU)

        sir = divergence(law(a, o), law(b, o))
        air = divergence(law(adv_a, o) * law(adv_a, a), law(adv_b, o) * law(adv_b, b))
        contrast = (1 - w) * reference.nt_xent(a, b, TAU) + (1 + w) * reference.nt_xent(adv_a, adv_b, TAU)
        return contrast + 0.4 * sir + 0.7 * air

    check(terms, gradients, *in_float64(model, loss))


def test_air_of_equal_distributions_is_zero_and_released_is_not():
    law = torch.full((8,), -math.log(8))
    assert invariance(law, law, "paper").item() == pytest.approx(0, abs=1e-6)
    # at B = 512 it is about -log B
    law = torch.full((512,), -math.log(512))
    assert invariance(law, law, "released").item() == pytest.approx(-math.log(512) - 1 / 512, abs=1e-5)


@pytest.fixture
def teacher(model, monkeypatch):
    """A teacher in place of a run's, of other weights than the student."""
    encoder = copy.deepcopy(model)
    with torch.no_grad():
        encoder.w.mul_(0.8).add_(0.05)
    frozen = Teacher(encoder)
    monkeypatch.setattr(Teacher, "of_student", classmethod(lambda *_, **__: frozen))
    monkeypatch.setattr(Teacher, "copy_projector_to", lambda *_: None)
    return frozen


def distance(x, y):
    return sum(1 - reference.cosine(a, b) for a, b in zip(x, y, strict=True)) / len(x)


def test_deacl(model, views, attack, teacher):
    terms, gradients = run(create_objective("deacl", teacher="unused", beta=1.7), model, views, attack)
    target = teacher(views.weak)
    moved = attack.scalar(model, views.weak, lambda x: 1 + cosine_distance_rows(model.features(x), target))

    def loss(m):
        benign, adversarial = m.features(views.weak.double()), m.features(moved.double())
        return distance(benign, target.double()) + 1.7 * distance(adversarial, benign) + 0 * m.v.sum()

    value, expected = in_float64(model, loss)
    assert gradients[1] is None
    check(terms, gradients[:1], value, expected[:1])


def test_profeat(model, views, attack, teacher):
    model.projector = nn.Identity()  # what is frozen; v stands for a projector that is not
    objective = create_objective("profeat", teacher="unused", beta=3.0, projector_weight=0.3)
    terms, gradients = run(objective, model, views, attack)
    f_t = teacher(views.weak)
    g_t = teacher.project(f_t)
    with torch.no_grad():
        f_s = model.features(views.a)

    def rows(x):
        f = model.features(x)
        return 1 + cosine_distance_rows(f, f_s) + cosine_distance_rows(model.project(f), g_t)

    moved = attack.scalar(model, views.a, rows)

    def loss(m):
        f, f_adv = m.features(views.a.double()), m.features(moved.double())
        g, g_adv = m.project(f), m.project(f_adv)
        clean = 0.7 * distance(f, f_t.double()) + 0.3 * distance(g, g_t.double())
        return clean + 3 * (0.7 * distance(f_adv, f) + 0.3 * distance(g_adv, g))

    check(terms, gradients, *in_float64(model, loss))


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["mlp_24_8", "three_layer", "bottleneck"])
def test_profeat_takes_any_projector_of_its_teacher_and_names_one_that_is_not_published(kind, capsys):
    assert create_objective("simclr", projector=kind).projector == kind
    with pytest.raises(UsageError, match="unknown projector 'mlp_24'; the nearest|unknown projector 'mlp_24'; allowed"):
        create_objective("simclr", projector="mlp_24")
    torch.manual_seed(0)
    teacher = Encoder(spec(), projector=kind)
    objective = create_objective("profeat", teacher=teacher)
    assert objective.projector == kind
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    theirs, ours = teacher.projector.state_dict(), model.projector.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not any(p.requires_grad for p in model.projector.parameters())
    told = capsys.readouterr().err
    assert ("the published one has two layers without norm" in told) == (not kind.startswith("mlp"))


def test_a_teacher_without_a_projector_cannot_teach_profeat():
    objective = create_objective("profeat", teacher=Encoder(spec(), projector="identity"))
    with pytest.raises(UsageError, match="no projector of the student's kind"):
        objective.setup(Encoder(spec(), objective.norm_banks, objective.projector))


@pytest.mark.e2e
def test_profeats_projector_is_the_teachers_and_stays_so(teacher_run):
    objective = create_objective("profeat", teacher=load_encoder(teacher_run))
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    model.train()
    theirs = load_encoder(teacher_run).projector.state_dict()
    x = torch.rand(6, 1, 8, 8)
    batch = Views(x, images=x, rows=torch.arange(6), weak=x.flip(3))
    optimizer = torch.optim.SGD(objective.param_groups(model), lr=0.1)
    objective.backward(model, batch, InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2))
    optimizer.step()
    assert all(torch.equal(v, theirs[k]) for k, v in model.projector.state_dict().items())
    assert any(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.e2e
@pytest.mark.parametrize("adversarial", [0.0, 0.7])
@pytest.mark.parametrize("benign", [0.0, 1.5])
@pytest.mark.parametrize("global_", [0.0, 2.0])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_gsa_rsl_with_every_subset_of_its_parts(model, views, attack, adversarial, benign, global_, rho):
    settings = {"adversarial": adversarial, "benign": benign, "global_": global_, "rho": rho}
    if adversarial == benign == global_ == 0:
        with pytest.raises(UsageError, match="one of them must be above 0"):
            create_objective("gsa_rsl", **settings)
        return
    model.scale = 1.0  # the two-sided form has one norm bank
    objective = create_objective("gsa_rsl", temperature=TAU, **TWO_SIDED | settings).eval()  # fixes the spectral norms
    if not (adversarial or global_):
        assert objective.attack_mode is None
    terms, gradients = run(objective, model, views, attack)
    a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=TAU)
    with torch.no_grad():
        discriminator = copy.deepcopy(objective.divergence.network).double() if global_ else None

    def others(m):
        value = adversarial * loop(m, a, b, "adv")
        if global_:
            p = discriminator(m.features(torch.cat([views.a, views.b]).double(), "adv"))
            q = discriminator(m.features(torch.cat([a, b]).double(), "adv"))
            js = (
                torch.log(torch.tensor(2.0)) + (torch.sigmoid(p).log().mean() + (1 - torch.sigmoid(q)).log().mean()) / 2
            )
            value = value + global_ * js
        return value + 0 * sum(p.sum() for p in m.parameters())

    value, expected = in_float64(model, others)
    if benign:
        _, ascent = in_float64(model, lambda m: loop(m, views.a, views.b, "adv"))
        norm = torch.sqrt(sum((g**2).sum() for g in ascent))
        above = copy.deepcopy(model).double()
        with torch.no_grad():
            for p, g in zip(above.parameters(), ascent, strict=True):
                p.add_(rho * g / norm)
        sharp, sharp_gradients = in_float64(above, lambda m: loop(m, views.a, views.b, "adv"))
        value = value + benign * sharp
        expected = [e + benign * g for e, g in zip(expected, sharp_gradients, strict=True)]
    check(terms, gradients, value, expected, scale=5)  # the weights add up to 4.2
    named = {"nce_clean": benign, "nce_adv": adversarial, "global_js": global_, "sharpness": benign and rho}
    assert set(terms.parts) == {name for name, on in named.items() if on}


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, 2), ({"adversarial": 0.0, "global_": 0.0}, 1), ({"benign": 0.0, "global_": 0.0}, 1), ({"benign": 0.0}, 2)],
)
def test_gsa_rsl_passes_through_the_norm_statistics_only_what_it_trains_on(encoder, attack, settings, passes):
    objective = create_objective("gsa_rsl", **TWO_SIDED | settings)
    objective.setup(encoder)
    norm = encoder.backbone.bn1.banks["adv"]
    before = norm.num_batches_tracked.item()
    a, b = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    objective.backward(encoder, Views(a, b, a, torch.arange(4)), attack)
    assert norm.num_batches_tracked.item() == before + passes


def test_gsa_rsl_leaves_the_weights_to_the_optimizer(encoder, attack):
    objective = create_objective("gsa_rsl")
    objective.setup(encoder)
    torch.manual_seed(0)
    a, b = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    twin = copy.deepcopy(encoder)
    objective.backward(encoder, Views(a, b, a, torch.arange(4), b), attack)
    assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gsa_rsl_with_every_divergence(model, views, attack, name):
    own = {"divergence": name, "benign": 0.0, "adversarial": 0.0, "rho": 0.0}
    objective = create_objective("gsa_rsl", **TWO_SIDED | own)
    objective.setup(model)
    before = objective.divergence.state_dict()
    terms, gradients = run(objective, model, views, attack)
    assert set(terms.parts) == {f"global_{name}"}
    assert any(g.abs().sum() > 0 for g in gradients)
    assert set(objective.state_dict()) >= {f"divergence.{k}" for k in before}


@pytest.mark.e2e
@pytest.mark.parametrize("name", DIVERGENCES)
def test_attack_divergence_pushes_features_off_the_benign_distribution(model, views, attack, name):
    own = {"divergence": name, "attack_divergence": True, "adversarial": 1e-6, "benign": 0.0}
    objective = create_objective("gsa_rsl", **TWO_SIDED | own)
    objective.setup(model)
    assert objective.attack_mode == "scalar"
    for _ in range(20):
        objective.backward(model, views, attack)
    rows = objective.divergence.eval().adversarial_rows
    with norm_banks.inference(model), torch.no_grad():
        benign = model.features(torch.cat([views.a, views.b]))
        moved = model.features(torch.cat(Pass(objective, model, views, attack).calls[0].adversarial))
        assert rows(benign, moved).mean() > rows(benign, benign).mean()


B = 4
PAIR, TRIPLE, FOUR = (math.log(views * B - 1) for views in (2, 3, 4))
COLLAPSED = [
    ("simclr", {}, PAIR),
    ("acl_a2a", {}, PAIR),
    ("acl_a2s", {}, PAIR),
    ("acl_ds", {}, PAIR),
    ("rocl", {"regularizer": 0.25}, 2 * TRIPLE + PAIR / 4),
    ("advcl", {"cluster_weight": 0}, 0.5 / 0.07 * FOUR),
    # (1 - share of crossing pairs) + share times the weight
    ("a_infonce", {"cluster_weight": 0, "variant": "ip", "adversarial_weight": 3.0}, 0.5 / 0.07 * 2 * FOUR),
    ("a_infonce", {"base": "rocl", "variant": "ip", "regularizer": 0}, (2 / 3 + 2 / 3) * TRIPLE),
    ("a_infonce", {"base": "rocl", "variant": "hn", "regularizer": 0}, 2 * math.log(3 * (B - 1) + 1)),
    ("dynacl", {}, PAIR),
    ("acl_air", {}, 2 * PAIR),
    ("acl_air", {"fidelity": "normalized"}, 2 * PAIR),
    ("acl_air", {"fidelity": "released", "adversarial": 0}, 2 * PAIR + 0.5 * (-math.log(B) - 1 / B)),
    ("dynacl_air", {}, 2 * PAIR),
    ("deacl", {"beta": 3.0}, 1 + 3),
    ("profeat", {"beta": 3.0}, 1 + 3),
    ("clae", {"benign": 3.0}, 4 * PAIR),
    ("fare", {"benign": 0.5}, 0.0),
    ("byol", {}, 4.0),
    ("3sat", {}, 6.0),
    ("3sat", {"fidelity": "released"}, 10.0),
    ("simsiam", {}, 0.0),
    ("moco", {"queue": 50}, math.log(51)),
    ("barlow_twins", {}, 5.0),
    ("vicreg", {}, 25 * 0.99),
    ("gsa_rsl", {"global_": 0.0, "rho": 0.0}, 3 * PAIR),
]
"""What an encoder that maps everything to 0 costs: all cosines are 0, and all laws over the batch uniform."""


@pytest.mark.parametrize(("name", "settings", "expected"), COLLAPSED)
def test_a_collapsed_encoder_has_a_closed_form(name, settings, expected, model, views, attack, teacher):
    with torch.no_grad():
        model.w.zero_()
    model.projector = nn.Identity()
    terms, _ = run(create_objective(name, **settings), model, views, attack)
    assert terms.total.item() == pytest.approx(expected, abs=1e-4)
    for part, level in terms.collapsed.items():
        assert terms.parts[part].item() == pytest.approx(level, abs=1e-4)
    assert {part for part in terms.parts if part.startswith("nce")} <= terms.collapsed.keys()


def test_every_objective_has_a_closed_form():
    assert {name for name, *_ in COLLAPSED} == set(available())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("acl_a2a", {"temperature": -1}, "temperature -1: allowed is a number above 0"),
        ("rocl", {"regularizer": -1}, "regularizer -1: allowed is a number from 0"),
        ("rocl", {"fidelity": "code"}, "unknown fidelity 'code'; allowed: paper, released"),
        ("advcl", {"cluster_weight": -0.1}, "cluster_weight -0.1"),
        ("a_infonce", {"variant": "iphm"}, "unknown variant 'iphm'; the nearest: iphn"),
        ("a_infonce", {"base": "moco"}, "unknown base 'moco'; allowed: advcl, rocl"),
        ("a_infonce", {"alpha": -1.0}, "alpha -1.0"),
        ("a_infonce", {"alpha": 1.5}, "alpha 1.5: allowed is a share from 0 to 1"),
        ("a_infonce", {"tau_plus": 1.0}, "tau_plus 1.0: allowed is a share from 0 to below 1"),
        ("a_infonce", {"base": "rocl", "pseudo_labels": "x"}, "setting of a_infonce on rocl: 'pseudo_labels'"),
        ("dynacl", {"momentum": 1.5}, "momentum 1.5: allowed is a share from 0 to 1"),
        ("acl_air", {"standard": -1}, "standard -1"),
        ("dynacl_air", {"fidelity": "kl"}, "unknown fidelity 'kl'; allowed: normalized, paper, released"),
        ("deacl", {"beta": "much"}, "beta 'much'"),
        ("profeat", {"projector_weight": 2}, "projector_weight 2: allowed is a share from 0 to 1"),
        ("simclr", {"temperature": 0}, "temperature 0: allowed is a number above 0"),
        ("acl_ds", {"temperature": "warm"}, "temperature 'warm'"),
        ("gsa_rsl", {"rho": -1}, "rho -1: allowed is a number from 0"),
        ("gsa_rsl", {"divergence": "jsd"}, "unknown divergence 'jsd'; the nearest: js"),
        (
            "gsa_rsl",
            {"divergence": "mmd", "gradient": "non_saturating"},
            "gradient 'non_saturating' is of divergence 'js'",
        ),
        ("gsa_rsl", {"gradient": "reverse"}, "unknown gradient 'reverse'; the nearest: reversed"),
        ("gsa_rsl", {"globl": 1}, "unknown setting of objective 'gsa_rsl': 'globl'; the nearest: global_"),
        ("acl_a2s", {"attack_mode": "pairwise"}, "unknown attack_mode 'pairwise'; allowed: bank, scalar"),
    ],
)
def test_settings_out_of_range_are_reported(name, settings, message):
    with pytest.raises(UsageError, match=message):
        create_objective(name, **settings)


def settings_without_a_weight(name):
    """Settings of an objective with each of its numbers at 0 and at 1, where a term may have no weight."""
    made_by = OBJECTIVES.get(name)
    hints = get_type_hints(made_by.__init__ if inspect.isclass(made_by) else made_by)
    numbers = [k for k, kind in hints.items() if float in (kind, *get_args(kind))]
    return [{}, *({k: value} for k in numbers for value in (0.0, 1.0))]


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_an_adversarial_loss_depends_on_the_attack(name, settings_of):
    """An objective that has one by its own word trains on other numbers when the images are attacked harder."""
    said = set()
    for own in settings_without_a_weight(name):
        found = []
        try:
            for eps in (1e-6, 0.3):
                objective = create_objective(name, **settings_of(name) | own)
                torch.manual_seed(0)
                encoder = Encoder(spec(), objective.norm_banks, projector=objective.projector)
                objective.setup(encoder)
                objective.on_epoch(3, 4)
                torch.manual_seed(1)
                views = Views(*torch.rand(3, 6, 1, 8, 8), torch.arange(6), torch.rand(6, 1, 8, 8))
                attack = InnerAttack(ThreatModel("Linf", eps), "PGD", 2)
                found.append(objective.terms(encoder, views, attack).total.item())
        except UsageError:  # a number that is out of range
            continue
        if objective.has_adversarial_loss():
            assert abs(found[0] - found[1]) > 1e-4, own
        said.add(objective.has_adversarial_loss())
    assert said
