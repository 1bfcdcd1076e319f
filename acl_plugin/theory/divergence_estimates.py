"""Estimate divergences between samples of benign and adversarial features, with images held out from each critic."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acl_plugin.errors import unknown
from acl_plugin.losses.divergences import DIVERGENCES, MaximumMeanDiscrepancy
from acl_plugin.losses.embeddings import check_embeddings
from acl_plugin.runtime.autograd import constant
from acl_plugin.runtime.defaults import usual_defaults
from acl_plugin.theory.critics import (
    Critic,
    Rows,
    clusters,
    discriminant,
    known_groups,
    log_loss,
    network,
    scored,
    splits,
)
from acl_plugin.theory.transport import sliced_wasserstein_rows, wasserstein_rows

FEWEST = 8
"""Smallest number of images of an estimate."""
FOLDS = 3
"""Parts of the images: a critic is fitted on all but one of them, and evaluated on that one."""
PERMUTATIONS = 2
"""Number of random exchanges of benign and adversarial rows behind a null value."""
MEASURED_WITH: dict[str, Any] = {"folds": FOLDS, "permutations": PERMUTATIONS, "critics": "2"}
"""Settings of the estimates; ``critics`` is their version."""


@dataclass(frozen=True)
class Estimate:
    """Estimate of a divergence.

    Attributes:
        value: the estimate, at least 0.
        rows: (N,) contributions of the images, whose mean is the estimate before it is clipped.
        by: values of single critics, before they are clipped.
    """

    value: float
    rows: Tensor
    by: Mapping[str, float]


@usual_defaults()
def jensen_shannon(
    benign: Tensor,
    adversarial: Tensor,
    seed: int,
    scores: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    groups: int = 10,
) -> Estimate:
    """Estimate the Jensen-Shannon divergence of two samples from below, in nats, as the largest of several critics.

    JS(P, Q) >= log 2 + (E_P[log sigma(h)] + E_Q[log(1 - sigma(h))]) / 2 for any critic h that is fitted on other
    images. The critics are regularized linear discriminants of the features, of the features and their squares, and
    within clusters; a network without a Lipschitz constraint; and histograms of given scores. The largest of them is
    above JS by chance for few images.

    Args:
        benign, adversarial: (N, D) features, N >= 8; row i of both is the same image.
        seed: seed of splits and critics.
        scores: further critics by name: (N,) scores of the benign and of the adversarial rows.
        groups: number of clusters.

    Raises:
        UsageError: for features of different shapes, or too few.

    Source: GAN (arXiv 1406.2661), theorem 1.

    Example:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> jensen_shannon(x, x + 3, seed=0).value > 0.6
        True
    """
    critics: dict[str, Critic] = {
        "linear": discriminant(),
        "quadratic": discriminant(quadratic=True),
        "clusters": discriminant(clusters(groups)),
        "network": network,
    }
    return _largest(Rows(*_pairs(benign, adversarial)), critics, scores or {}, seed)


@usual_defaults()
def joint_jensen_shannon(
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    marginal: Estimate,
    seed: int,
    scores: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Estimate:
    """Estimate the Jensen-Shannon divergence of (features, label) from below, at least that of the features alone.

    A critic of the features alone is one of both. The others are linear discriminants within each class, a network that
    reads the label as well, and histograms of scores that depend on the label.

    Args:
        benign, adversarial: (N, D) features.
        labels: (N,).
        marginal: estimate of the features alone.
        seed: seed of splits and critics.
        scores: see ``jensen_shannon``.
    """
    rows = Rows(*_pairs(benign, adversarial), labels)
    critics: dict[str, Critic] = {"classes": discriminant(known_groups), "network with label": network}
    found = _largest(rows, critics, scores or {}, seed)
    best = marginal if marginal.value >= found.value else found
    return Estimate(best.value, best.rows, {**marginal.by, **found.by})


def _largest(
    rows: Rows, critics: Mapping[str, Critic], scores: Mapping[str, tuple[Tensor, Tensor]], seed: int
) -> Estimate:
    jobs = [(name, rows, critic) for name, critic in critics.items()]
    columns = {name: [constant(each).double().unsqueeze(1) for each in pair] for name, pair in scores.items()}
    jobs += [(name, Rows(*pair), scored) for name, pair in columns.items()]
    values = {}
    for name, of, critic in jobs:
        values[name] = rows.benign.new_zeros(len(of))
        for train, held_out, fold in splits(of, FOLDS, seed):
            values[name][fold] = math.log(2) - log_loss(critic(train, seed)(held_out)).to(rows.benign)
    by = {name: value.mean().item() for name, value in values.items()}
    best = max(by, key=by.__getitem__)
    return Estimate(min(_from_zero(by[best]), math.log(2)), values[best], by)


@usual_defaults()
def transport(name: str, benign: Tensor, adversarial: Tensor, seed: int) -> Estimate:
    """Estimate ``wasserstein`` or ``sliced_wasserstein`` from below, see ``acl_plugin.theory.transport``."""
    rows = TRANSPORT[name](*_pairs(benign, adversarial), seed)
    return Estimate(_from_zero(rows.mean().item()), rows, {})


TRANSPORT = {"sliced_wasserstein": sliced_wasserstein_rows, "wasserstein": wasserstein_rows}


@usual_defaults()
def squared_mmd(benign: Tensor, adversarial: Tensor) -> Estimate:
    """Estimate the squared maximum mean discrepancy, without bias."""
    rows = MaximumMeanDiscrepancy(benign.shape[1]).rows(constant(benign), constant(adversarial)).double()
    mean = rows.mean()
    # an image is in both places of a pair, so that it contributes twice to the deviation of the mean
    return Estimate(_from_zero(mean.item()), mean + 2 * (rows - mean), {})


def _pairs(benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features in float64, without gradient.

    Raises:
        UsageError: for different shapes, or too few.
    """
    check_embeddings(FEWEST, benign=benign, adversarial=adversarial)
    return constant(benign).double(), constant(adversarial).double()


def _from_zero(value: float) -> float:
    """Return a value clipped to at least 0; NaN would become 0 silently."""
    if math.isnan(value):
        raise FloatingPointError("an estimate of a divergence is NaN")
    return max(0.0, value)


def measure(name: str, benign: Tensor, adversarial: Tensor, seed: int) -> float:
    """Return the estimate of a divergence by name, at least 0.

    Args:
        name: one of ``acl_plugin.losses.divergences.DIVERGENCES``.
        benign, adversarial: (N, D) features, N >= 8; row i of both is the same image.
        seed: seed of splits and critics.

    Raises:
        UsageError: for an unknown name, and for features of different shapes, or too few.
    """
    if name in TRANSPORT:
        return transport(name, benign, adversarial, seed).value
    if name not in ("js", "mmd"):
        raise unknown("divergence", name, DIVERGENCES)
    check_embeddings(FEWEST, benign=benign, adversarial=adversarial)
    return (jensen_shannon(benign, adversarial, seed) if name == "js" else squared_mmd(benign, adversarial)).value


def null_value(estimate: Callable[[Tensor, Tensor], Estimate], benign: Tensor, adversarial: Tensor, seed: int) -> float:
    """Return the mean estimate after rows of random images were exchanged, which makes both distributions equal."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(PERMUTATIONS):
        exchanged = torch.rand(len(benign), 1, generator=generator) < 0.5
        p, q = torch.where(exchanged, adversarial, benign), torch.where(exchanged, benign, adversarial)
        found.append(estimate(p, q).value)
    return sum(found) / len(found)
