"""Bound means over a population: losses by an empirical Bernstein bound, and a probe's error by PAC-Bayes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.probing.linear_head import fit_head

SIGMAS = (0.1, 0.2, 0.3, 0.5, 1.0)
"""Standard deviations of the weights of a Gibbs probe to choose from; each costs a share of the confidence."""
DECAYS = (1e-3, 1e-2, 1e-1)
"""Weight decays of the probe to choose from; the posterior may depend on the rows, so they cost nothing."""


def empirical_bernstein(losses: Tensor, limit: float, delta: float = 0.05) -> tuple[float, float]:
    """Return an interval that contains the mean of losses in [0, M] with probability at least 1 - delta.

    mean +- (sqrt(2 V ln(4 / delta) / n) + 7 M ln(4 / delta) / (3 (n - 1))), V the sample variance, clipped to [0, M].

    Args:
        losses: (n,) independent losses, n >= 2; they are clipped to M.
        limit: M.
        delta: in (0, 1).

    Source: Maurer and Pontil (arXiv 0907.3740), Theorem 4, for both sides.
    """
    clipped, n = losses.double().clamp(0, limit), len(losses)
    log = math.log(4 / delta)
    half = math.sqrt(2 * clipped.var().item() * log / n) + 7 * limit * log / (3 * (n - 1))
    mean = clipped.mean().item()
    return max(0.0, mean - half), min(limit, mean + half)


def inverse_kl(error: float, divergence: float) -> float:
    """Return the largest p with kl(error || p) <= divergence, the binary relative entropy in nats.

    Args:
        error: in [0, 1].
        divergence: at least 0.
    """
    low, high = error, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binary_kl(error, middle) <= divergence else (low, middle)
    return low


def _binary_kl(q: float, p: float) -> float:
    p = min(max(p, 1e-300), 1 - 1e-16)
    of_error = q * math.log(q / p) if q > 0 else 0.0
    return of_error + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)


def pac_bayes_kl(error: float, divergence: float, n: int, delta: float = 0.05) -> float:
    """Return an upper bound of the population error of a Gibbs classifier, with probability at least 1 - delta.

    kl(error || population error) <= (KL(posterior || prior) + ln(2 sqrt(n) / delta)) / n.

    Args:
        error: expected error of the posterior on n independent rows, in [0, 1].
        divergence: KL(posterior || prior), in nats; the prior does not depend on the rows.
        n: number of rows.
        delta: in (0, 1).

    Source: Seeger (JMLR 2002) with the constant of Maurer (arXiv cs/0411099).

    Example:
        >>> round(pac_bayes_kl(0.074, 278, 1297), 3)
        0.356
    """
    return inverse_kl(error, (divergence + math.log(2 * math.sqrt(n) / delta)) / n)


@dataclass(frozen=True)
class GibbsBound:
    """Bound of the population error of a linear probe whose weights are drawn from N(W, sigma^2) for each image.

    Attributes:
        bound: upper bound of the error, with probability 1 - delta over the rows.
        error: upper bound of its error on the rows.
        divergence: KL(posterior || prior), in nats.
        sigma: standard deviation of each weight.
        n: number of rows.
    """

    bound: float
    error: float
    divergence: float
    sigma: float
    n: int


def gibbs_bound(
    weight: Tensor, features: Tensor, labels: Tensor, sigmas: Sequence[float] = SIGMAS, delta: float = 0.05
) -> GibbsBound:
    """Bound the population error of a probe with weights N(W, sigma^2), with the prior N(0, sigma^2).

    KL = ||W||_F^2 / (2 sigma^2). Each sigma has an equal share of delta, and the best bound is returned. The margin of
    y over k is Gaussian with mean (w_y - w_k) . z and standard deviation sqrt(2) sigma ||z||, so that the error on a
    row is at most the sum over k of the probability that it is negative.

    Args:
        weight: (C, D), may be fitted on these rows; append a constant feature for a bias.
        features: (n, D), independent rows that neither the encoder nor the scale of the features has seen.
        labels: (n,).
        sigmas: standard deviations to choose from, fixed before the rows are seen.
        delta: in (0, 1).
    """
    weight, z, own = weight.double(), features.double(), labels.unsqueeze(1)
    scores, found = z @ weight.T, []
    margins = (scores.gather(1, own) - scores) / (2**0.5 * z.norm(dim=1, keepdim=True))
    margins = margins.nan_to_num(nan=-math.inf).scatter(1, own, math.inf)  # a row of zeros is a tie, and may be wrong
    for sigma in sigmas:
        error = torch.special.ndtr(-margins / sigma).sum(1).clamp(max=1).mean().item()
        divergence = weight.square().sum().item() / (2 * sigma**2)
        bound = pac_bayes_kl(error, divergence, len(labels), delta / len(sigmas))
        found.append(GibbsBound(bound, error, divergence, sigma, len(labels)))
    return min(found, key=lambda each: each.bound)


def solved_gibbs_probe(features: Tensor, labels: Tensor, other: Tensor, classes: int) -> GibbsBound:
    """Return the best bound of probes that are solved on rows that the encoder has not seen.

    Args:
        features, labels: (n, D) and (n,), unseen by the encoder.
        other: (M, D) features of other images, which fix mean and scale.
        classes: number of classes.
    """
    mean, unit = other.double().mean(0), other.double().std(0).clamp_min(1e-6)
    z, bounds = (features.double() - mean) / unit, []
    for decay in DECAYS:
        weight, bias = fit_head(z, labels, classes, decay, tolerance=1e-4)
        with_bias = torch.cat([weight, bias.unsqueeze(1)], 1), F.pad(z, (0, 1), value=1.0)
        bounds.append(gibbs_bound(*with_bias, labels))
    return min(bounds, key=lambda each: each.bound)
