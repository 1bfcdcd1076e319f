"""Each recipe against plain loops over its paper's formula, on a tiny linear encoder."""

import copy

import pytest
import torch
from torch import nn

import reference
from acl_plugin import create_objective
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack, ThreatModel
from acl_plugin.objective import Views

TAU = 0.4


class LinearEncoder(nn.Module):
    """f(x) = W_route x, g(f) = V f: every quantity of a recipe is a short formula."""

    def __init__(self, size=5):
        super().__init__()
        torch.manual_seed(3)
        self.size = size
        self.w = nn.Parameter(torch.randn(size, 16) / 4)
        self.v = nn.Parameter(torch.randn(size, size) / 2)

    def features(self, x, route=None):
        scale = 1.3 if route == "adv" else 1.0
        return (x.flatten(1) - 0.5 * scale) @ self.w.T

    def project(self, features, route=None):
        return features @ self.v.T

    def forward(self, x, route=None):
        return self.project(self.features(x, route), route)

    def views(self, a, b, route=None):
        return self(a, route), self(b, route)


@pytest.fixture
def model():
    return LinearEncoder()


@pytest.fixture
def views():
    torch.manual_seed(4)
    return Views(torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4), torch.arange(4))


@pytest.fixture
def attack():
    return InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2)


def run(objective, model, views, attack):
    objective.setup(model)
    model.zero_grad()
    terms = objective.backward(model, views, attack)
    return terms, [p.grad.clone() for p in model.parameters()]


def in_float64(model, loss):
    """A reference loss of a float64 copy of the model, and its gradients."""
    twin = copy.deepcopy(model).double()
    value = loss(twin)
    return value, list(torch.autograd.grad(value, list(twin.parameters())))


def check(terms, gradients, expected, expected_gradients):
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def loop(twin, a, b, route_a=None, route_b=None):
    return reference.nt_xent(twin(a.double(), route_a), twin(b.double(), route_b or route_a), TAU)


def test_simclr(model, views, attack):
    result = run(create_objective("simclr", temperature=TAU), model, views, attack)
    check(*result, *in_float64(model, lambda m: loop(m, views.a, views.b)))


def test_acl_a2a(model, views, attack):
    result = run(create_objective("acl_a2a", temperature=TAU), model, views, attack)
    a, b = attack.joint(model, views.a, views.b, route="adv", temperature=TAU)
    assert not torch.equal(a, views.a)
    check(*result, *in_float64(model, lambda m: loop(m, a, b, "adv")))


@pytest.mark.parametrize("view", ["scalar", "bank"])
def test_acl_a2s(model, views, attack, view):
    result = run(create_objective("acl_a2s", temperature=TAU, attack_view=view), model, views, attack)
    with torch.no_grad():
        keys = model(views.b, "clean")
    if view == "bank":
        a = attack.bank(model, views.a, keys, route="adv", temperature=TAU)
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
    a, b = attack.joint(model, views.a, views.b, route="adv", temperature=TAU)
    expected = in_float64(model, lambda m: (loop(m, views.a, views.b) + loop(m, a, b, "adv")) / 2)
    check(terms, gradients, *expected)
    assert set(terms.parts) == {"nce_clean", "nce_adv"}


@pytest.mark.parametrize("adversarial", [0.0, 0.7])
@pytest.mark.parametrize("benign", [0.0, 1.5])
@pytest.mark.parametrize("global_", [0.0, 2.0])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_gsa_rsl_with_every_subset_of_its_parts(model, views, attack, adversarial, benign, global_, rho):
    settings = {"adversarial": adversarial, "benign": benign, "global_": global_, "rho": rho}
    if adversarial == benign == 0:
        with pytest.raises(UsageError, match="one of them must be above 0"):
            create_objective("gsa_rsl", **settings)
        return
    objective = create_objective("gsa_rsl", temperature=TAU, **settings).eval()  # fixes the spectral norms
    if not (adversarial or global_):
        assert objective.attack_view is None
    terms, gradients = run(objective, model, views, attack)
    a, b = attack.joint(model, views.a, views.b, temperature=TAU)
    with torch.no_grad():
        discriminator = copy.deepcopy(objective.divergence.discriminator).double() if global_ else None

    def others(m):
        value = adversarial * loop(m, a, b)
        if global_:
            p = discriminator(m.features(torch.cat([views.a, views.b]).double()))
            q = discriminator(m.features(torch.cat([a, b]).double()))
            js = (
                torch.log(torch.tensor(2.0)) + (torch.sigmoid(p).log().mean() + (1 - torch.sigmoid(q)).log().mean()) / 2
            )
            value = value + global_ * js
        return value + 0 * sum(p.sum() for p in m.parameters())

    value, expected = in_float64(model, others)
    if benign:
        _, ascent = in_float64(model, lambda m: loop(m, views.a, views.b))
        norm = torch.sqrt(sum((g**2).sum() for g in ascent))
        above = copy.deepcopy(model).double()
        with torch.no_grad():
            for p, g in zip(above.parameters(), ascent, strict=True):
                p.add_(rho * g / norm)
        sharp, sharp_gradients = in_float64(above, lambda m: loop(m, views.a, views.b))
        value = value + benign * sharp
        expected = [e + benign * g for e, g in zip(expected, sharp_gradients, strict=True)]
    check(terms, gradients, value, expected)
    named = {"nce_clean": benign, "nce_adv": adversarial, "global_js": global_, "sharpness": benign and rho}
    assert set(terms.parts) == {name for name, on in named.items() if on}


@pytest.mark.parametrize(
    ("settings", "passes"),
    [({}, 2), ({"adversarial": 0.0, "global_": 0.0}, 1), ({"benign": 0.0, "global_": 0.0}, 1), ({"benign": 0.0}, 2)],
)
def test_gsa_rsl_passes_through_the_norm_statistics_only_what_it_trains_on(encoder, attack, settings, passes):
    objective = create_objective("gsa_rsl", **settings)
    objective.setup(encoder)
    norm = encoder.backbone.bn1.banks["clean"]
    before = norm.num_batches_tracked.item()
    a, b = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    objective.backward(encoder, Views(a, b, a, torch.arange(4)), attack)
    assert norm.num_batches_tracked.item() == before + passes


def test_gsa_rsl_leaves_the_weights_to_the_optimiser(encoder, attack):
    objective = create_objective("gsa_rsl")
    objective.setup(encoder)
    torch.manual_seed(0)
    a, b = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    twin = copy.deepcopy(encoder)
    objective.backward(encoder, Views(a, b, a, torch.arange(4)), attack)
    assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), twin.parameters(), strict=True))


def test_attack_divergence_pushes_features_off_the_benign_law(model, views, attack):
    objective = create_objective("gsa_rsl", attack_divergence=True, adversarial=1e-6, global_=1.0)
    objective.setup(model)
    assert objective.attack_view == "scalar"
    for _ in range(20):
        objective.backward(model, views, attack)
    rows = objective.divergence.eval().adversarial_rows
    moved = torch.cat(objective._adversarial_views(model, views, attack))
    with torch.no_grad():
        assert rows(model.features(moved)).mean() > rows(model.features(torch.cat([views.a, views.b]))).mean()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("simclr", {"temperature": 0}, "temperature 0: allowed is a number above 0"),
        ("acl_ds", {"temperature": "warm"}, "temperature 'warm'"),
        ("gsa_rsl", {"rho": -1}, "rho -1: allowed is a number from 0"),
        ("gsa_rsl", {"gradient": "reverse"}, "unknown gradient 'reverse'; the nearest: reversed"),
        ("gsa_rsl", {"globl": 1}, "unknown setting of objective 'gsa_rsl': 'globl'; the nearest: global_"),
        ("acl_a2s", {"attack_view": "joint"}, "unknown attack_view 'joint'; allowed: bank, scalar"),
    ],
)
def test_settings_out_of_range_are_told(name, settings, message):
    with pytest.raises(UsageError, match=message):
        create_objective(name, **settings)
