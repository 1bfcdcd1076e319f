"""Losses that regress embeddings on fixed ones, as pure functions, in float32 (or float64) even under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.losses.embeddings import check_embeddings
from acl_plugin.runtime.device import precise


def squared_distance_rows(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared L2 distance of each pair of samples, summed over the dimensions: (B, D), (B, D) -> (B,).

    Embeddings are not normalized.

    Raises:
        UsageError: for different shapes.

    Source: FARE (arXiv 2402.12336), equation 3.

    Example:
        >>> from acl_plugin.losses.regression import squared_distance_rows
        >>> squared_distance_rows(torch.zeros(1, 4), torch.full((1, 4), 2.0))
        tensor([16.])
    """
    check_embeddings(x=x, y=y)
    with torch.autocast(x.device.type, enabled=False):
        return (precise(x) - precise(y)).square().sum(1)


def spread(z: Tensor) -> Tensor:
    """Return the standard deviation over the batch of normalized embeddings, times the root of their size: ().

    It is near 1 for embeddings that are uniform on the sphere, and 0 when all are equal.

    Args:
        z: (B, P) embeddings, B >= 2. No gradient is taken.

    Raises:
        UsageError: for another shape.

    Source: SimSiam (arXiv 2011.10566), section 4.1.

    Example:
        >>> from acl_plugin.losses.regression import spread
        >>> spread(torch.ones(4, 3))
        tensor(0.)
    """
    check_embeddings(2, z=z)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(precise(z), dim=1)
        return unit.std(0).mean() * unit.shape[1] ** 0.5
