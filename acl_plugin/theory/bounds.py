"""Evaluate bounds on the robust loss of a linear probe on a sample.

R = mean l(W f(x'), y) is the robust loss and B = mean l(W f(x), y) the benign one, l the cross-entropy, x' = A(x, y)
for any adversary A. Two bounds hold on every sample (``certain``); the others are estimates, not certificates.

Source: the setting of arXiv 2311.09671; the derivations are in the docstrings.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-6
"""Slack below 0 that rounding may cause, relative to the right side."""


@dataclass(frozen=True)
class Bound:
    """Inequality left <= right.

    Attributes:
        name: name of the bound.
        left: the bounded loss.
        right: value of the bound.
        certain: True if it holds on every sample, False for an estimate.
        assumption: assumption under which it holds.
    """

    name: str
    left: float
    right: float
    certain: bool
    assumption: str

    @property
    def slack(self) -> float:
        """Return right - left."""
        return self.right - self.left

    @property
    def holds(self) -> bool:
        """Return whether left <= right on this sample, up to rounding."""
        return self.slack >= -TOLERANCE * max(1.0, abs(self.right))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with ``slack`` and ``holds``."""
        return asdict(self) | {"slack": self.slack, "holds": self.holds}


def coupling_bound(weight: Tensor, bias: Tensor, benign: Tensor, adversarial: Tensor, labels: Tensor) -> Bound:
    """Bound the robust loss by the distance between features: certain on every sample.

    R <= B + sqrt(2) ||W||_2 mean ||f(x') - f(x)||.

    The gradient of the cross-entropy with respect to the logits is p - e_y, whose norm is at most sqrt(2). Hence
    l(W z + b, y) is Lipschitz in z with sqrt(2) times the spectral norm of W. The mean distance is that of one coupling
    of the benign and adversarial feature distributions, and so at least their Wasserstein-1 distance.

    Args:
        weight, bias: (C, D) and (C,) of the probe.
        benign, adversarial: (N, D) features of the same images.
        labels: (N,).
    """
    weight, bias, z, z_adv = (t.double() for t in (weight, bias, benign, adversarial))
    lipschitz = math.sqrt(2) * torch.linalg.matrix_norm(weight, 2)
    left, right = (F.cross_entropy(features @ weight.T + bias, labels) for features in (z_adv, z))
    right = right + lipschitz * (z_adv - z).norm(dim=1).mean()
    return Bound("coupling", left.item(), right.item(), True, "none")


def divergence_bound(
    benign_losses: Tensor, adversarial_losses: Tensor, js: float, label_shift: float | None, limit: float
) -> Bound:
    """Bound the clipped robust loss by a divergence between the feature distributions: an estimate.

    R <= B + M TV + M mean |P(y|z) - Q(y|z)|_1 for losses clipped to [0, M], with TV <= sqrt(2 JS).

    When the distribution of z changes, the mean of a loss in [0, M] changes by at most M TV. When the distribution of y
    given z changes, it changes by at most M times their L1 distance. Pinsker's inequality on both halves of JS, in
    nats, gives JS >= TV^2 / 2. JS is estimated from below, so the right side is an estimate.

    Args:
        benign_losses, adversarial_losses: (N,) in nats.
        js: estimate, in nats: of z, or of (z, y) when ``label_shift`` is None, as the joint has no label shift.
        label_shift: mean L1 distance, in [0, 2].
        limit: M.
    """
    left = adversarial_losses.double().clamp(max=limit).mean().item()
    benign = benign_losses.double().clamp(max=limit).mean().item()
    variation = min(1.0, math.sqrt(2 * js))
    if label_shift is None:
        details = f"JS of (features, labels) is not above its estimate; losses clipped at {limit:.3f}"
        return Bound("joint divergence", left, benign + limit * variation, False, details)
    details = f"JS and label shift are not above their estimates; losses clipped at {limit:.3f}"
    return Bound("global divergence", left, benign + limit * (variation + label_shift), False, details)


def two_class_loss(z: Tensor, labels: Tensor, loss: Literal["logistic", "hinge"] = "logistic") -> float:
    """Return R2, the loss of the mean classifier, averaged over two-class tasks.

    R2 = E_{c, c' independent, c != c'} mean_{i in c} l(z_i . (mu_c - mu_c')), with mu the class means, classes by their
    shares of the sample, and l(v) = log2(1 + e^-v), or max(0, 1 - v).

    Args:
        z: (N, P) embeddings.
        labels: (N,), two classes or more.
        loss: l, ``logistic`` or ``hinge``.

    Source: Saunshi et al. (arXiv 1902.09229), the average supervised loss of the mean classifier.
    """
    z = z.double()
    classes, of_row = labels.unique(return_inverse=True)
    shares = torch.bincount(of_row).double() / len(z)
    means = torch.stack([z[of_row == c].mean(0) for c in range(len(classes))])
    scores = z @ means.T  # (N, C)
    margins = scores.gather(1, of_row.unsqueeze(1)) - scores  # own class minus each other class
    weights = shares.expand(len(z), -1).clone()  # 1 / N of the row is n_c / N times 1 / n_c
    weights[torch.arange(len(z)), of_row] = 0
    return ((_convex(margins, loss) * weights).sum() / weights.sum()).item()


def contrastive_bound(z: Tensor, labels: Tensor, loss: Literal["logistic", "hinge"] = "logistic") -> Bound:
    """Bound R2 by the contrastive loss with positives of the same class: certain on every sample.

    R2 <= (L - tau_c) / (1 - tau_c), L = mean_i mean_{j of i's class} mean_k l(z_i . (z_j - z_k)), over all samples,
    drawn with replacement. tau_c = sum_c share_c^2 is the probability that a negative has the anchor's class. As l is
    convex, the mean over j and k moves inside, which leaves the class means for k of another class, and l(0) = 1 for k
    of the same.

    Args:
        z: (N, P) embeddings of adversarial images.
        labels: (N,), two classes or more.
        loss: l, ``logistic`` or ``hinge``.

    Source: Saunshi et al. (arXiv 1902.09229), Theorem 4.1, applied to adversarial features.
    """
    z = z.double()
    total = z.new_zeros(())
    for c in labels.unique():
        own = z[labels == c]
        scores, others = own @ own.T, own @ z.T
        for positives, negatives in zip(scores, others, strict=True):  # of one anchor: (n_c,), (N,)
            total += _convex(positives.unsqueeze(1) - negatives, loss).mean()
    right = _without_collisions(total.item() / len(z), labels)
    return Bound("contrastive, class positives", two_class_loss(z, labels, loss), right, True, "none")


def view_contrastive_bound(
    za: Tensor, zb: Tensor, z: Tensor, labels: Tensor, loss: Literal["logistic", "hinge"] = "logistic"
) -> Bound:
    """Bound R2 by the contrastive loss with the positives of training: an estimate.

    The right side is that of ``contrastive_bound`` with L = mean_i mean_k l(za_i . (zb_i - zb_k)).

    Args:
        za, zb: (N, P) embeddings of two adversarial views.
        z: (N, P) embeddings of adversarial images, for the left side.
        labels: (N,).
        loss: l, ``logistic`` or ``hinge``.
    """
    scores = za.double() @ zb.double().T
    average = _convex(scores.diagonal().unsqueeze(1) - scores, loss).mean().item()
    right = _without_collisions(average, labels)
    details = "the views of an image are drawn like the images of its class"
    return Bound("contrastive, views as positives", two_class_loss(z, labels, loss), right, False, details)


def collision(labels: Tensor) -> float:
    """Return tau_c = sum_c share_c^2, the probability that two images have the same class."""
    shares = torch.bincount(labels).double() / len(labels)
    return shares.square().sum().item()


def _without_collisions(average: float, labels: Tensor) -> float:
    chance = collision(labels)
    return (average - chance) / (1 - chance)


def _convex(margins: Tensor, loss: str) -> Tensor:
    """Return a convex loss that is 1 at 0."""
    return F.softplus(-margins) / math.log(2) if loss == "logistic" else (1 - margins).clamp_min(0)
