"""The bounds against plain loops, and the certain ones on random and on trained encoders under random adversaries."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.theory import bounds
from acl_plugin.theory.bounds import (
    Bound,
    class_means,
    collision,
    contrastive_bound,
    coupling_bound,
    divergence_bound,
    require_certain,
    total_variation_limit,
    two_class_loss,
    view_contrastive_bound,
)

pytestmark = pytest.mark.numeric


def convex(v, loss):
    return math.log2(1 + math.exp(-v)) if loss == "logistic" else max(0.0, 1 - v)


def sample(seed, n=24, size=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    return z, labels


def risk_of(z, labels, means, loss):
    """R2 by its definition, a mean over tasks of two classes."""
    n, classes = len(z), labels.unique().tolist()
    shares = {c: (labels == c).double().mean().item() for c in classes}
    tau, risk = sum(s**2 for s in shares.values()), 0.0
    for c in classes:
        for other in classes:
            if c != other:
                rows = [i for i in range(n) if labels[i] == c]
                of_task = sum(convex(float(z[i] @ (means[c] - means[other])), loss) for i in rows) / len(rows)
                risk += shares[c] * shares[other] * of_task / (1 - tau)
    return risk, tau


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("fixed", [False, True], ids=["own means", "fixed means"])
def test_contrastive_bound_is_a_plain_loop(loss, fixed):
    z, labels = sample(0)
    others = sample(9)[0] if fixed else z
    n = len(z)
    means = {c: others[labels == c].mean(0) for c in labels.unique().tolist()}
    average = sum(convex(float(z[i] @ (means[int(labels[i])] - others[k])), loss) for i in range(n) for k in range(n))
    single = 0.0  # with each image of the class as positive, instead of their mean
    for i in range(n):
        own = [j for j in range(n) if labels[j] == labels[i]]
        pairs = sum(convex(float(z[i] @ (others[j] - others[k])), loss) for j in own for k in range(n))
        single += pairs / (len(own) * n * n)
    risk, tau = risk_of(z, labels, means, loss)
    bound = contrastive_bound(z, labels, loss, others if fixed else None)
    assert collision(labels) == pytest.approx(tau)
    assert bound.left == pytest.approx(risk)
    assert bound.right == pytest.approx((average / n**2 - tau) / (1 - tau))
    assert bound.left <= bound.right <= (single - tau) / (1 - tau)
    assert bound.certain
    assert two_class_loss(z, labels, loss, others) == bound.left


def test_contrastive_bound_is_quadratic_in_the_number_of_images(monkeypatch):
    computed = []
    original = bounds._convex
    monkeypatch.setattr(
        bounds, "_convex", lambda margins, loss: (computed.append(margins.numel()), original(margins, loss))[1]
    )
    z, labels = sample(0, n=200)
    contrastive_bound(z, labels)
    assert 200**2 <= sum(computed) <= 2 * 200**2


def test_coupling_bound_is_its_formula_and_below_that_of_the_lipschitz_constant():
    f, labels = sample(1)
    f_adv = f + 0.3 * sample(2)[0]
    weight, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    bound = coupling_bound(weight, bias, f, f_adv, labels, "these images")
    robust, benign, moved = 0.0, 0.0, 0.0
    for z, z_adv, y in zip(f, f_adv, labels, strict=True):
        robust += F.cross_entropy(weight @ z_adv + bias, y).item() / len(f)
        benign += F.cross_entropy(weight @ z + bias, y).item() / len(f)
        moved += max(max(0.0, float((weight[k] - weight[y]) @ (z_adv - z))) for k in range(3)) / len(f)
    assert bound.left == pytest.approx(robust)
    assert bound.right == pytest.approx(benign + moved)
    assert bound.about == "these images"
    assert bound.limit == pytest.approx(math.log(3))
    distance = sum((a - b).norm().item() for a, b in zip(f_adv, f, strict=True)) / len(f)
    assert bound.left <= bound.right < benign + math.sqrt(2) * torch.linalg.svdvals(weight)[0].item() * distance


def test_coupling_bound_is_attained_by_an_attack_on_one_margin_far_from_the_boundary():
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    bound = coupling_bound(weight, torch.zeros(2), torch.tensor([[-20.0]]), torch.tensor([[-22.0]]), torch.tensor([0]))
    assert bound.left == pytest.approx(44.0)
    assert bound.right == pytest.approx(40.0 + 4.0)


@pytest.mark.e2e
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 40),
    size=st.integers(1, 6),
    classes=st.integers(2, 6),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 30.0]),
    push=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    loss=st.sampled_from(["logistic", "hinge"]),
)
def test_the_certain_bounds_hold_for_random_features_probes_and_adversaries(seed, n, size, classes, scale, push, loss):
    f, labels = sample(seed, n, size, classes)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(classes, size, generator=generator) * scale
    bias = torch.randn(classes, generator=generator)
    # an adversary that goes up the loss, and one that goes anywhere
    moved = f.float().clone().requires_grad_()
    (up,) = torch.autograd.grad(F.cross_entropy(moved @ weight.T + bias, labels), moved)
    for direction in (up / up.norm().clamp_min(1e-12), torch.randn(n, size, generator=generator)):
        assert coupling_bound(weight, bias, f, f.float() + push * direction, labels).holds
    other = torch.randn(n, size, generator=generator)
    assert contrastive_bound(f * scale, labels, loss).holds
    assert contrastive_bound(f * scale, labels, loss, other).holds
    assert view_contrastive_bound(f * scale, other * push, labels, loss).holds


def test_a_bound_that_is_violated_states_so():
    assert not Bound("x", 1.0, 0.9, True, "none").holds
    assert Bound("x", 1.0, 1.0 - 1e-9, True, "none").holds
    with pytest.raises(UsageError, match="x bound has a side that is not a number"):
        Bound("x", math.nan, 0.9, True, "none")
    assert Bound("x", 1.0, 1.5, False, "y").to_dict() == {
        "name": "x", "left": 1.0, "right": 1.5, "certain": False, "assumption": "y", "about": "", "limit": None,
        "slack": 0.5, "verdict": "estimate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("right", "certain", "verdict"),
    [
        (0.5, True, "violated"), (0.5, False, "violated"), (1.5, True, "holds"), (1.5, False, "estimate"),
        (2.0, True, "holds vacuously"), (9.0, False, "holds vacuously"),
    ],
)  # fmt: skip
def test_verdicts(right, certain, verdict):
    assert Bound("x", 1.0, right, certain, "none", limit=2.0).verdict == verdict


@pytest.mark.e2e
def test_a_certain_bound_that_is_violated_raises_even_without_assertions():
    require_certain([Bound("x", 1.0, 0.9, False, "none"), Bound("x", 1.0, 1.0, True, "none")])
    with pytest.raises(EvaluationStopped, match="the x bound is violated \\(1 > 0.9\\)"):
        require_certain([Bound("x", 1.0, 0.9, True, "none")])
    script = (
        "from acl_plugin.theory.bounds import Bound, require_certain\n"
        "assert False, 'assertions are off'\n"
        "require_certain([Bound('x', 1.0, 0.9, True, 'none')])\n"
    )
    ended = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "EvaluationStopped" in ended.stderr


@pytest.mark.parametrize("variation", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_limit_of_the_total_variation_is_attained_by_two_points_and_below_pinskers(variation):
    p, q = (1 + variation) / 2, (1 - variation) / 2  # P = (p, q), Q = (q, p)
    js = sum(math.log(2 * a) * a for a in (p, q) if a > 0)
    assert total_variation_limit(js) == pytest.approx(variation, abs=1e-6)
    assert total_variation_limit(js) <= math.sqrt(2 * js) + 1e-6


def test_divergence_bound_on_two_distributions_that_are_known():
    """Two points: P has z = 1 with chance p, Q with chance q; labels are a function of z. TV and JS are exact."""
    p, q, limit = 0.3, 0.6, 2.0
    at_one, at_zero = 1.7, 0.2
    js = 0.0
    for a, b in ((p, q), (1 - p, 1 - q)):
        js += (a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b))) / 2
    benign = torch.tensor([at_one] * 3 + [at_zero] * 7)
    adversarial = torch.tensor([at_one] * 6 + [at_zero] * 4)
    bound = divergence_bound(benign, adversarial, js, 0.0, limit)
    assert bound.left == pytest.approx(q * at_one + (1 - q) * at_zero)
    assert bound.right == pytest.approx(p * at_one + (1 - p) * at_zero + limit * total_variation_limit(js))
    assert abs(p - q) <= total_variation_limit(js) < math.sqrt(2 * js)
    assert bound.holds
    assert not bound.certain
    joint = divergence_bound(benign, adversarial, js, None, limit)
    assert (joint.name, joint.right) == ("joint divergence", bound.right)


def test_losses_are_clipped_and_variation_is_at_most_1():
    bound = divergence_bound(torch.tensor([0.0]), torch.tensor([100.0]), 0.69, 0.5, 2.0)
    assert (bound.left, bound.right) == (2.0, pytest.approx(2.0 * (1.0 + 0.25), abs=0.1))


def test_the_shift_of_labels_costs_half_of_its_l1_distance():
    """One point z: P(y = 0) = 0.9, Q(y = 0) = 0.2, losses 0 and M; the bound is attained."""
    benign, adversarial = torch.tensor([0.0] * 9 + [2.0]), torch.tensor([0.0] * 2 + [2.0] * 8)
    bound = divergence_bound(benign, adversarial, 0.0, 2 * 0.7, 2.0)
    assert bound.right == pytest.approx(bound.left)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_views_as_positives_are_a_plain_loop(loss):
    za, (zb, labels) = sample(3)[0], sample(4)
    n, slope = len(za), 1 / math.log(2) if loss == "logistic" else 1.0
    means = {c: zb[labels == c].mean(0) for c in labels.unique().tolist()}
    average = sum(convex(float(za[i] @ (zb[i] - zb[k])), loss) for i in range(n) for k in range(n)) / n**2
    nearer = sum(max(0.0, float(za[i] @ (zb[i] - means[int(labels[i])]))) for i in range(n)) / n
    risk, tau = risk_of(za, labels, means, loss)
    bound = view_contrastive_bound(za, zb, labels, loss)
    assert bound.right == pytest.approx((average - tau + slope * nearer) / (1 - tau))
    assert bound.left == pytest.approx(risk)
    assert bound.certain


def test_without_the_cost_of_near_positives_the_bound_by_views_would_be_wrong():
    z, labels = 3 * torch.eye(4), torch.tensor([0, 0, 1, 1])  # an image is like its views, but not like its class
    bound = view_contrastive_bound(z, z, labels)
    average = (convex(9.0, "logistic") * 3 + 1) / 4
    assert (average - 0.5) / 0.5 < 0 < bound.left <= bound.right
    assert class_means(z, labels, 2)[0].tolist() == [1.5, 1.5, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_they_are_the_same_with_another_default_dtype(dtype):
    z, labels = sample(0)

    def found():
        both = contrastive_bound(z, labels), view_contrastive_bound(z, z.flip(1), labels)
        return [(bound.left, bound.right) for bound in both]

    expected = found()
    torch.set_default_dtype(dtype)
    try:
        assert found() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_features_that_are_not_finite_are_the_callers_mistake():
    z, labels = sample(0)
    moved = z.clone()
    moved[0, 0] = math.nan
    head = torch.eye(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(UsageError, match="not a number"):
        coupling_bound(*head, z, moved, labels)
    with pytest.raises(UsageError, match="not a number"):
        contrastive_bound(moved, labels)


@pytest.mark.parametrize("labels", [torch.zeros(24, dtype=torch.long), torch.full((24,), 3)])
def test_one_class_is_refused(labels):
    z, _ = sample(0)
    for bound in (contrastive_bound, lambda z, y: view_contrastive_bound(z, z, y), two_class_loss):
        with pytest.raises(UsageError, match="two classes or more"):
            bound(z, labels)


def test_an_unknown_loss_is_refused():
    z, labels = sample(0)
    for bound in (contrastive_bound, two_class_loss, lambda z, y, loss: view_contrastive_bound(z, z, y, loss)):
        with pytest.raises(UsageError, match="logistic") as refused:
            bound(z, labels, loss="logisitc")
        assert refused.value.parameter == "loss"
