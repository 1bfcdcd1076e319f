"""Losses without negatives that decorrelate the dimensions of embeddings, in float32 (or float64) under autocast.

On R ranks, statistics are those of the joint batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.losses.embeddings import check_embeddings
from acl_plugin.runtime.device import precise
from acl_plugin.runtime.distributed import gathered


def barlow_twins_terms(za: Tensor, zb: Tensor) -> tuple[Tensor, Tensor]:
    """Return the invariance and the redundancy term of Barlow Twins, () each.

    sum_i (1 - C_ii)^2 and sum_{i != j} C_ij^2, where C is the cross-correlation (P, P) of the two views over the batch.

    Args:
        za, zb: (B, P) embeddings of two views, B >= 2.

    Returns:
        The terms; equal embeddings give P and 0.

    Raises:
        UsageError: for views of different shapes, or of fewer than two images.

    Source: Barlow Twins (arXiv 2103.03230), equation 1.
    """
    with torch.autocast(za.device.type, enabled=False):
        za, zb = (F.batch_norm(z, None, None, training=True) for z in _joint(za, zb))
        correlation = za.T @ zb / len(za)
        diagonal = correlation.diagonal()
        return (1 - diagonal).square().sum(), correlation.square().sum() - diagonal.square().sum()


def vicreg_terms(za: Tensor, zb: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """Return the invariance, variance and covariance term of VICReg, () each.

    Invariance is the mean squared difference of the views. Variance is the mean of max(0, 1 - sqrt(Var + eps)) over
    dimensions and views. Covariance is the sum of squared covariances between dimensions, divided by P, of both views.

    Args:
        za, zb: (B, P) embeddings of two views, B >= 2.
        eps: added to variances.

    Returns:
        The terms; equal embeddings give 0, 1 - sqrt(eps) and 0.

    Raises:
        UsageError: for views of different shapes, or of fewer than two images.

    Source: VICReg (arXiv 2105.04906), equations 1 to 5.
    """
    with torch.autocast(za.device.type, enabled=False):
        za, zb = _joint(za, zb)
        invariance = F.mse_loss(za, zb)
        centered = [z - z.mean(0) for z in (za, zb)]
        covariances = [z.T @ z / (len(z) - 1) for z in centered]
        variance = sum(F.relu(1 - (c.diagonal() + eps).sqrt()).mean() for c in covariances) / 2
        covariance = sum((c.square().sum() - c.diagonal().square().sum()) / len(c) for c in covariances)
        assert isinstance(variance, Tensor)
        assert isinstance(covariance, Tensor)
        return invariance, variance, covariance


def _joint(za: Tensor, zb: Tensor) -> Sequence[Tensor]:
    check_embeddings(za=za, zb=zb)
    joint = [gathered(precise(z)) for z in (za, zb)]
    check_embeddings(2, za=joint[0])
    return joint
