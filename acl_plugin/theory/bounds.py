"""Evaluate bounds on the robust loss of a linear probe on a sample.

R = mean l(W f(x'), y) is the robust loss and B = mean l(W f(x), y) the benign one, l the cross-entropy, x' = A(x, y)
for any adversary A. Certain bounds hold on every sample. They are about these images, this adversary and this
classifier, not about the population. The others are estimates, not certificates.

Source: the setting of arXiv 2311.09671. The page "Bounds of the audit" of the documentation has the derivations.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.validation import refused_value, require_one_of

TOLERANCE = 1e-6
"""Slack below 0 that rounding may cause, relative to the right side."""
LOG2 = math.log(2)


@dataclass(frozen=True)
class Bound:
    """Inequality left <= right.

    Attributes:
        name: name of the bound.
        left: the bounded loss.
        right: value of the bound.
        certain: True if it holds on every sample, False for an estimate.
        assumption: assumption under which it holds.
        about: classifier whose loss is bounded, and the adversary.
        limit: largest value of ``left``; for an unbounded loss, that of a classifier that ignores the image. A right
            side at or above it says nothing.

    Raises:
        UsageError: for a side that is not a number, as that of features that are not finite.
    """

    name: str
    left: float
    right: float
    certain: bool
    assumption: str
    about: str = ""
    limit: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.left) or math.isnan(self.right):
            message = f"the {self.name} bound has a side that is not a number: {self.left:g} and {self.right:g}"
            raise UsageError(message, parameter="features", given=math.nan, allowed="finite features")

    @property
    def slack(self) -> float:
        """Return right - left."""
        return self.right - self.left

    @property
    def holds(self) -> bool:
        """Return whether left <= right on this sample, up to rounding."""
        return self.slack >= -TOLERANCE * max(1.0, abs(self.right))

    @property
    def verdict(self) -> str:
        """Return ``violated``, ``holds vacuously`` (right side at or above the limit), ``holds`` or ``estimate``."""
        if not self.holds:
            return "violated"
        if self.right >= self.limit * (1 - TOLERANCE):
            return "holds vacuously"
        return "holds" if self.certain else "estimate"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with ``slack`` and ``verdict``; an infinite limit is None."""
        limit = self.limit if math.isfinite(self.limit) else None
        return asdict(self) | {"limit": limit, "slack": self.slack, "verdict": self.verdict}


def require_certain(bounds: Sequence[Bound]) -> None:
    """Raise an error for a certain bound that is violated, even under ``python -O``.

    Raises:
        EvaluationStopped: naming the bound and both sides.
    """
    for bound in bounds:
        if bound.certain and not bound.holds:
            sides = f"{bound.left:.6g} > {bound.right:.6g}"
            raise EvaluationStopped(f"the {bound.name} bound is violated ({sides}), which is a bug; please report it")


def coupling_bound(
    weight: Tensor, bias: Tensor, benign: Tensor, adversarial: Tensor, labels: Tensor, about: str = ""
) -> Bound:
    """Bound the robust loss by how far the attack moves the margins of each image: certain on every sample.

    R <= B + mean_i max_k [(w_k - w_y) . (f(x_i') - f(x_i))]+.

    The cross-entropy is the log-sum-exp of the margins (w_k - w_y) . z + b_k - b_y over k. It grows by at most the
    largest growth of a margin, which is at least 0, as the margin of k = y is always 0. The right side is at most
    B + sqrt(2) ||W||_2 mean ||f(x') - f(x)||, that of the Lipschitz constant.

    Args:
        weight, bias: (C, D) and (C,) of the probe.
        benign, adversarial: (N, D) features of the same images.
        labels: (N,).
        about: classifier and adversary.
    """
    weight, bias, z, z_adv = (t.double() for t in (weight, bias, benign, adversarial))
    left, right = (F.cross_entropy(features @ weight.T + bias, labels) for features in (z_adv, z))
    moved = (z_adv - z) @ weight.T
    right = right + (moved - moved.gather(1, labels.unsqueeze(1))).amax(1).mean()
    return Bound("coupling", left.item(), right.item(), True, "none", about, math.log(len(weight)))


def total_variation_limit(js: float) -> float:
    """Return the largest total variation of two distributions with a Jensen-Shannon divergence, in [0, 1].

    TV <= 1 - 2 h^-1(log 2 - JS), with h the binary entropy in nats and h^-1 in [0, 1/2].

    JS is the mutual information of a sample and the fair bit that says which distribution it is from. The best guess
    of that bit errs with probability (1 - TV) / 2, so that h((1 - TV) / 2) >= log 2 - JS by Fano's inequality. Two
    distributions on two points attain it. Pinsker's TV <= sqrt(2 JS) is larger.

    Args:
        js: in nats, in [0, log 2].

    Example:
        >>> round(total_variation_limit(math.log(2)), 6), round(total_variation_limit(0.0), 6)
        (1.0, 0.0)
    """
    entropy, low, high = LOG2 - min(max(js, 0.0), LOG2), 0.0, 0.5
    for _ in range(60):  # bisection; the entropy rises on [0, 1/2]
        middle = (low + high) / 2
        if -middle * math.log(middle) - (1 - middle) * math.log1p(-middle) < entropy:
            low = middle
        else:
            high = middle
    return 1 - 2 * low


def divergence_bound(
    benign_losses: Tensor,
    adversarial_losses: Tensor,
    js: float,
    label_shift: float | None,
    limit: float,
    about: str = "",
) -> Bound:
    """Bound the clipped robust loss by a divergence between the feature distributions: an estimate.

    R <= B + M TV + M / 2 mean |P(y|z) - Q(y|z)|_1 for losses clipped to [0, M], with TV <= 1 - 2 h^-1(log 2 - JS).

    When the distribution of z changes, the mean of a loss in [0, M] changes by at most M TV. When the distribution of y
    given z changes, it changes by at most M / 2 times their L1 distance, as the difference of two distributions has
    the mass 0. JS is estimated from below, so the right side is an estimate.

    Args:
        benign_losses, adversarial_losses: (N,) in nats.
        js: estimate, in nats: of z, or of (z, y) when ``label_shift`` is None, as the joint has no label shift.
        label_shift: mean L1 distance, in [0, 2].
        limit: M.
        about: classifier and adversary.
    """
    left = adversarial_losses.double().clamp(max=limit).mean().item()
    benign = benign_losses.double().clamp(max=limit).mean().item()
    variation = total_variation_limit(js)
    if label_shift is None:
        details = f"JS of (features, labels) is not above its estimate; losses clipped at {limit:.3f}"
        return Bound("joint divergence", left, benign + limit * variation, False, details, about, limit)
    details = f"JS and label shift are not above their estimates; losses clipped at {limit:.3f}"
    right = benign + limit * (variation + label_shift / 2)
    return Bound("global divergence", left, right, False, details, about, limit)


Loss = Literal["logistic", "hinge"]


def two_class_loss(z: Tensor, labels: Tensor, loss: Loss = "logistic", means_of: Tensor | None = None) -> float:
    """Return R2, the loss of the mean classifier, averaged over two-class tasks.

    R2 = E_{c, c' independent, c != c'} mean_{i in c} l(z_i . (mu_c - mu_c')), with mu the class means, classes by their
    shares of the sample, and l(v) = log2(1 + e^-v), or max(0, 1 - v).

    Args:
        z: (N, P) embeddings.
        labels: (N,), two classes or more.
        loss: l, ``logistic`` or ``hinge``.
        means_of: (N, P) embeddings of the same images that the classifier is made of; None for ``z``.

    Raises:
        UsageError: for one class, or an unknown loss.

    Source: Saunshi et al. (arXiv 1902.09229), the average supervised loss of the mean classifier.
    """
    classes, of_row, counts = labels.unique(return_inverse=True, return_counts=True)
    means = class_means(z if means_of is None else means_of, of_row, len(classes))
    rows = two_class_losses(z.double(), of_row, means, counts.double() / len(labels), loss)
    return (rows.mean() / (1 - collision(labels))).item()


def class_means(z: Tensor, of_row: Tensor, classes: int) -> Tensor:
    """Return the mean embedding of each class: (N, P) and (N,) -> (C, P), in float64."""
    return torch.stack([z[of_row == c].double().mean(0) for c in range(classes)])


def two_class_losses(z: Tensor, of_row: Tensor, means: Tensor, shares: Tensor, loss: Loss = "logistic") -> Tensor:
    """Return sum_{c' != c} share_c' l(z_i . (mu_c - mu_c')) of each embedding, c its class: (B, P) -> (B,).

    Args:
        z: (B, P) embeddings.
        of_row: (B,) classes, as rows of ``means``.
        means, shares: (C, P) class means and (C,) shares of the classes.
        loss: l, ``logistic`` or ``hinge``.
    """
    own = of_row.unsqueeze(1)
    scores = z @ means.to(z).T
    weights = shares.to(z).expand(len(z), -1).scatter(1, own, 0.0)
    return (_convex(scores.gather(1, own) - scores, loss) * weights).sum(1)


def contrastive_bound(
    z: Tensor, labels: Tensor, loss: Loss = "logistic", means_of: Tensor | None = None, about: str = ""
) -> Bound:
    """Bound R2 by the contrastive loss with the mean of the class as positive: certain on every sample, in O(N^2).

    R2 <= (L - tau_c) / (1 - tau_c), L = mean_i mean_k l(z_i . (mu_c - z_k)), c the class of i, over all samples, drawn
    with replacement. tau_c = sum_c share_c^2 is the probability that a negative has the anchor's class. As l is convex,
    L is at most the loss with single positives of the class, mean_i mean_{j in c} mean_k l(z_i . (z_j - z_k)). The mean
    over k moves inside as well, which leaves the class means for k of another class, and l(0) = 1 for k of the same.

    Args:
        z: (N, P) embeddings of adversarial images.
        labels: (N,), two classes or more.
        loss: l, ``logistic`` or ``hinge``.
        means_of: (N, P) embeddings of the same images for positives, negatives and class means; None for ``z``. With
            benign ones, the mean classifier is fixed and the adversary moves the anchors.
        about: classifier and adversary.

    Raises:
        UsageError: for one class, or an unknown loss.

    Source: Saunshi et al. (arXiv 1902.09229), Theorem 4.1, applied to adversarial features.
    """
    others = (z if means_of is None else means_of).double()
    z, (classes, of_row) = z.double(), labels.unique(return_inverse=True)
    positives = (z * class_means(others, of_row, len(classes))[of_row]).sum(1, keepdim=True)
    average = _convex(positives - z @ others.T, loss).mean().item()
    left, right = two_class_loss(z, labels, loss, others), _without_collisions(average, labels)
    return Bound("contrastive, class positives", left, right, True, "none", about, 1.0)


def view_contrastive_bound(za: Tensor, zb: Tensor, labels: Tensor, loss: Loss = "logistic", about: str = "") -> Bound:
    """Bound R2 on views by the contrastive loss with the positives of training: certain on every sample.

    R2 <= (L - tau_c + mean_i [za_i . (zb_i - mu_c)]+ / ln 2) / (1 - tau_c), L = mean_i mean_k l(za_i . (zb_i - zb_k)),
    with R2 of the anchors za and mu the class means of zb. The loss falls at most as fast as 1 / ln 2 (1 for the
    hinge), so that a positive nearer to its anchor than the class mean is costs that much.

    Args:
        za, zb: (N, P) embeddings of two adversarial views.
        labels: (N,).
        loss: l, ``logistic`` or ``hinge``.
        about: classifier and adversary.

    Raises:
        UsageError: for one class, or an unknown loss.
    """
    za, zb, (classes, of_row) = za.double(), zb.double(), labels.unique(return_inverse=True)
    scores = za @ zb.T
    average = _convex(scores.diagonal().unsqueeze(1) - scores, loss).mean()
    nearer = (za * (zb - class_means(zb, of_row, len(classes))[of_row])).sum(1).clamp_min(0).mean()
    right = _without_collisions((average + nearer / (LOG2 if loss == "logistic" else 1.0)).item(), labels)
    left = two_class_loss(za, labels, loss, zb)
    return Bound("contrastive, views as positives", left, right, True, "none", about, 1.0)


def collision(labels: Tensor) -> float:
    """Return tau_c = sum_c share_c^2, the probability that two images of two classes or more have the same class."""
    if len(labels) == 0 or (labels == labels[0]).all():
        raise refused_value("labels", labels.unique().tolist(), "labels of two classes or more")
    shares = torch.bincount(labels).double() / len(labels)
    return shares.square().sum().item()


def _without_collisions(average: float, labels: Tensor) -> float:
    chance = collision(labels)
    return (average - chance) / (1 - chance)


def _convex(margins: Tensor, loss: Loss) -> Tensor:
    """Return a convex loss that is 1 at 0."""
    require_one_of(("logistic", "hinge"), loss=loss)
    return F.softplus(-margins) / LOG2 if loss == "logistic" else (1 - margins).clamp_min(0)
