"""The bounds against plain loops, and the certain ones on random and on trained encoders under random adversaries."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from acl_plugin.theory.bounds import (
    Bound,
    collision,
    contrastive_bound,
    coupling_bound,
    divergence_bound,
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


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_contrastive_bound_is_a_plain_loop(loss):
    z, labels = sample(0)
    n, classes = len(z), labels.unique().tolist()
    average = 0.0
    for i in range(n):
        own = [j for j in range(n) if labels[j] == labels[i]]
        average += sum(convex(float(z[i] @ (z[j] - z[k])), loss) for j in own for k in range(n)) / (len(own) * n * n)
    shares = {c: (labels == c).double().mean().item() for c in classes}
    tau = sum(s**2 for s in shares.values())
    means = {c: z[labels == c].mean(0) for c in classes}
    risk = 0.0
    for c in classes:
        for other in classes:
            if c != other:
                rows = [i for i in range(n) if labels[i] == c]
                of_task = sum(convex(float(z[i] @ (means[c] - means[other])), loss) for i in rows) / len(rows)
                risk += shares[c] * shares[other] * of_task / (1 - tau)
    bound = contrastive_bound(z, labels, loss)
    assert collision(labels) == pytest.approx(tau)
    assert bound.left == pytest.approx(risk)
    assert bound.right == pytest.approx((average - tau) / (1 - tau))
    assert bound.certain
    assert two_class_loss(z, labels, loss) == bound.left


def test_coupling_bound_is_its_formula():
    f, labels = sample(1)
    f_adv = f + 0.3 * sample(2)[0]
    weight, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    bound = coupling_bound(weight, bias, f, f_adv, labels)
    robust = sum(F.cross_entropy(weight @ z + bias, y).item() for z, y in zip(f_adv, labels, strict=True)) / len(f)
    benign = sum(F.cross_entropy(weight @ z + bias, y).item() for z, y in zip(f, labels, strict=True)) / len(f)
    distance = sum((a - b).norm().item() for a, b in zip(f_adv, f, strict=True)) / len(f)
    largest = torch.linalg.svdvals(weight)[0].item()
    assert bound.left == pytest.approx(robust)
    assert bound.right == pytest.approx(benign + math.sqrt(2) * largest * distance)
    assert bound.holds


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
    assert contrastive_bound(f * scale, labels, loss).holds


def test_a_bound_that_is_violated_says_so():
    assert not Bound("x", 1.0, 0.9, True, "none").holds
    assert Bound("x", 1.0, 1.0 - 1e-9, True, "none").holds
    assert Bound("x", 1.0, 1.5, False, "y").to_dict() == {
        "name": "x", "left": 1.0, "right": 1.5, "certain": False, "assumption": "y", "slack": 0.5, "holds": True,
    }  # fmt: skip


def test_divergence_bound_on_two_laws_that_are_known():
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
    assert bound.right == pytest.approx(p * at_one + (1 - p) * at_zero + limit * math.sqrt(2 * js))
    assert abs(p - q) <= math.sqrt(2 * js)  # Pinsker
    assert bound.holds
    assert not bound.certain
    joint = divergence_bound(benign, adversarial, js, None, limit)
    assert (joint.name, joint.right) == ("joint divergence", bound.right)


def test_losses_are_clipped_and_variation_is_at_most_1():
    bound = divergence_bound(torch.tensor([0.0]), torch.tensor([100.0]), 0.69, 0.5, 2.0)
    assert (bound.left, bound.right) == (2.0, pytest.approx(0.0 + 2.0 * (1.0 + 0.5)))


def test_views_as_positives_are_a_plain_loop_and_the_class_bound_if_views_are_of_the_class():
    za, zb, z = sample(3)[0], sample(4)[0], sample(5)[0]
    labels = sample(5)[1]
    n, tau = len(za), collision(labels)
    average = sum(convex(float(za[i] @ (zb[i] - zb[k])), "logistic") for i in range(n) for k in range(n)) / n**2
    bound = view_contrastive_bound(za, zb, z, labels)
    assert bound.right == pytest.approx((average - tau) / (1 - tau))
    assert bound.left == two_class_loss(z, labels)
    assert not bound.certain
