"""Estimate how much the distribution of the label given the features differs on benign and adversarial images.

The estimate compares two probes, so it is above 0 even where the distributions agree: compare it with its null value.
Where features keep their distribution and predictions change, it restates the robust error, and explains nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.probing.linear_head import fit_head
from acl_plugin.theory.critics import split_indices
from acl_plugin.theory.divergence_estimates import Estimate

DECAYS = (1e-3, 3e-2, 1.0)
"""Weight decays of the probes, on features with standard deviation 1, to choose from by cross-validation."""
TOLERANCE = 1e-3


def label_shift(
    benign: Tensor, adversarial: Tensor, labels: Tensor, classes: int, decays: Sequence[float], seed: int
) -> Estimate:
    """Estimate E_Q |P(y|z) - Q(y|z)|_1, in [0, 2], by two linear probes, one on each distribution.

    The probes are fitted on one half of each class and compared on the adversarial features of the other, both ways.

    Args:
        benign, adversarial: (N, D) features; labels: (N,).
        classes: number of classes.
        decays: weight decay for each half, see ``chosen_decays``.
        seed: seed of the split.
    """
    rows = benign.new_zeros(len(labels), dtype=torch.float64)
    p, q = standardized(benign, adversarial)
    halves = class_halves(labels, seed)
    for decay, fitted, held_out in zip(decays, halves, halves[::-1], strict=True):
        predictions = []
        for features in (p, q):
            weight, bias = fit_head(features[fitted], labels[fitted], classes, decay, TOLERANCE)
            predictions.append((q[held_out] @ weight.T + bias).softmax(1))
        rows[held_out] = (predictions[0] - predictions[1]).abs().sum(1)
    return Estimate(rows.mean().item(), rows, {})


def chosen_decays(benign: Tensor, adversarial: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[float, float]:
    """Return the weight decay for each half with the best held-out cross-entropy inside the half, over both probes."""
    p, q = standardized(benign, adversarial)
    first, second = (_chosen(p[half], q[half], labels[half], classes, seed) for half in class_halves(labels, seed))
    return first, second


def _chosen(p: Tensor, q: Tensor, labels: Tensor, classes: int, seed: int) -> float:
    losses = dict.fromkeys(DECAYS, 0.0)
    for fitted, held_out in split_indices(len(labels), 2, seed):
        if labels[fitted].unique().numel() < 2:
            continue
        for features in (p, q):
            for decay in DECAYS:
                weight, bias = fit_head(features[fitted], labels[fitted], classes, decay, TOLERANCE)
                held = features[held_out] @ weight.T + bias
                losses[decay] += F.cross_entropy(held, labels[held_out]).item()
    return min(reversed(DECAYS), key=losses.__getitem__)


def class_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of two halves of each class, in random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    return order[::2], order[1::2]


def standardized(benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples in float64, shifted and scaled to mean 0 and standard deviation 1 of each feature."""
    both = torch.cat([benign, adversarial]).double()
    mean, unit = both.mean(0), both.std(0).clamp_min(1e-6)
    return (benign.double() - mean) / unit, (adversarial.double() - mean) / unit
