"""Bounds on the robust loss of a linear probe, evaluated on a sample.

R = mean l(W f(x'), y) is the robust loss and B = mean l(W f(x), y) the benign one, l the cross-entropy, x' = A(x, y)
for any adversary A. Two bounds hold on every sample (``certain``); the others are estimates, and no certificates.

Source: the setting of arXiv 2311.09671; the derivations are in the docstrings.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-6
"""Rounding that a slack below 0 may be of, relative to the right side."""


@dataclass(frozen=True)
class Bound:
    """One inequality, left <= right.

    Attributes:
        name: of the bound.
        left: the loss that is bounded.
        right: the right side.
        certain: whether it holds on every sample; if not, it is an estimate.
        assumption: under which it holds.
    """

    name: str
    left: float
    right: float
    certain: bool
    assumption: str

    @property
    def slack(self) -> float:
        """right - left."""
        return self.right - self.left

    @property
    def holds(self) -> bool:
        """Whether left <= right on this sample, up to rounding."""
        return self.slack >= -TOLERANCE * max(1.0, abs(self.right))

    def to_dict(self) -> dict[str, Any]:
        """With slack and whether it holds."""
        return asdict(self) | {"slack": self.slack, "holds": self.holds}


def coupling_bound(weight: Tensor, bias: Tensor, benign: Tensor, adversarial: Tensor, labels: Tensor) -> Bound:
    """R <= B + sqrt(2) ||W||_2 mean ||f(x') - f(x)||, on every sample.

    The gradient of the cross-entropy in the logits is p - e_y, whose norm is at most sqrt(2), so that l(W z + b, y) is
    Lipschitz in z with sqrt(2) times the spectral norm of W. The mean distance is that of one coupling of the laws of
    benign and adversarial features, and so not below their Wasserstein-1 distance.

    Args:
        weight, bias: (C, D) and (C,) of the probe.
        benign, adversarial: (N, D) features of the same images; labels: (N,).
    """
    weight, bias, z, z_adv = (t.double() for t in (weight, bias, benign, adversarial))
    lipschitz = math.sqrt(2) * torch.linalg.matrix_norm(weight, 2)
    left, right = (F.cross_entropy(features @ weight.T + bias, labels) for features in (z_adv, z))
    right = right + lipschitz * (z_adv - z).norm(dim=1).mean()
    return Bound("coupling", left.item(), right.item(), True, "none")


def divergence_bound(
    benign_losses: Tensor, adversarial_losses: Tensor, js: float, label_shift: float | None, limit: float
) -> Bound:
    """R <= B + M TV + M mean |P(y|z) - Q(y|z)|_1 for losses clipped to [0, M], with TV <= sqrt(2 JS).

    Where a loss with values in [0, M] meets another law of z, its mean changes by at most M TV; where it meets another
    law of y given z, by at most M times their L1 distance. Pinsker's inequality on both halves of JS, in nats, gives
    JS >= TV^2 / 2. The estimate of JS is a bound from below, so the right side is an estimate.

    Args:
        benign_losses, adversarial_losses: (N,) in nats.
        js: estimated, in nats: of z, or of (z, y) when ``label_shift`` is None, as a law of both has no label shift.
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
    """R2: the loss of the mean classifier, averaged over two-class tasks.

    R2 = E_{c, c' independent, c != c'} mean_{i in c} l(z_i . (mu_c - mu_c')), with mu the class means, classes by their
    shares of the sample, and l(v) = log2(1 + e^-v), or max(0, 1 - v).

    Args:
        z: (N, P) embeddings; labels: (N,), two classes or more.

    Source: Saunshi et al. (arXiv 1902.09229), the average supervised loss of the mean classifier.
    """
    z = z.double()
    classes, of_row = labels.unique(return_inverse=True)
    shares = torch.bincount(of_row).double() / len(z)
    means = torch.stack([z[of_row == c].mean(0) for c in range(len(classes))])
    scores = z @ means.T  # (N, C)
    margins = scores.gather(1, of_row.unsqueeze(1)) - scores  # of the own class over each other
    weights = shares.expand(len(z), -1).clone()  # 1 / N of the row is n_c / N times 1 / n_c
    weights[torch.arange(len(z)), of_row] = 0
    return ((_convex(margins, loss) * weights).sum() / weights.sum()).item()


def contrastive_bound(z: Tensor, labels: Tensor, loss: Literal["logistic", "hinge"] = "logistic") -> Bound:
    """R2 <= (L - tau_c) / (1 - tau_c), with positives of the same class: on every sample.

    L = mean_i mean_{j of i's class} mean_k l(z_i . (z_j - z_k)), over all rows, drawn with replacement; tau_c =
    sum_c share_c^2 is the chance that a negative is of the anchor's class. l is convex: the mean over j and k may be
    taken inside, which leaves the class means for k of another class, and l(0) = 1 for k of the same.

    Args:
        z: (N, P) embeddings of adversarial images; labels: (N,), two classes or more.

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
    """The same right side with the positives of training, L = mean_i mean_k l(za_i . (zb_i - zb_k)): an estimate.

    Args:
        za, zb: (N, P) embeddings of two adversarial views.
        z: (N, P) embeddings of adversarial images, for the left side; labels: (N,).
    """
    scores = za.double() @ zb.double().T
    average = _convex(scores.diagonal().unsqueeze(1) - scores, loss).mean().item()
    right = _without_collisions(average, labels)
    details = "the views of an image are drawn like the images of its class"
    return Bound("contrastive, views as positives", two_class_loss(z, labels, loss), right, False, details)


def collision(labels: Tensor) -> float:
    """tau_c = sum_c share_c^2: the chance that two images are of the same class."""
    shares = torch.bincount(labels).double() / len(labels)
    return shares.square().sum().item()


def _without_collisions(average: float, labels: Tensor) -> float:
    chance = collision(labels)
    return (average - chance) / (1 - chance)


def _convex(margins: Tensor, loss: str) -> Tensor:
    """A convex loss that is 1 at 0."""
    return F.softplus(-margins) / math.log(2) if loss == "logistic" else (1 - margins).clamp_min(0)
